"""A finished job: the frontier with a budget slider, bits per layer, what was measured, files."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from mpsearch.errors import MpsearchError
from mpsearch.formats import parse_option
from mpsearch.report.tables import refinement_line
from mpsearch.schemas import Allocation, Costs, Frontier, Profile
from mpsearch.schemas.jobs import Job
from mpsearch_api.page.charts import bits_figure, frontier_figure, measured_figure
from mpsearch_api.page.frame import heading, human_size
from mpsearch_api.page.session import Visit, say_error

__all__ = ["Answer", "measured_rows"]

STEPS = 400


def measured_rows(allocation: Allocation) -> list[dict[str, str]]:
    """Lay out what was measured beside the float model and the baselines.

    Args:
        allocation: A verified allocation.

    Returns:
        Rows of name, loss, metric and note; none when nothing was measured.
    """
    found = allocation.verification
    if found is None:
        return []
    written = ".2%" if found.metric_is_share else ".5g"
    measured = [("float", found.float_model, ""), ("mpsearch", found.allocation, "")]
    measured += [
        (rule.name, rule.measurement, rule.description)
        for rule in found.baselines
        if rule.measurement is not None
    ]
    return [
        {
            "name": name,
            "loss": f"{one.loss:.5f}",
            "metric": "–" if one.metric is None else format(one.metric, written),
            "note": note,
        }
        for name, one, note in measured
    ]


class Answer:
    """What the search found, and a slider that asks for another budget while it is dragged."""

    def __init__(self, visit: Visit, job: Job) -> None:
        """Take what is shown.

        Args:
            visit: Who looks.
            job: A job that succeeded.
        """
        self.visit = visit
        self.job = job
        self.wanted: float | None = None
        self.solving = asyncio.Lock()

    async def build(self) -> None:
        """Fetch the answer and lay it out."""
        client, job = self.visit.client, self.job.id
        self.found: Allocation = await client.result(job)
        self.shown = self.found
        self.profile: Profile = await client.profile(job)
        self.costs: Costs = await client.costs(job)
        resources = self.costs.resources
        first = next(iter(self.found.budgets), resources[0])
        self.frontier: Frontier = await client.frontier(job, first)
        self._measured()
        heading("Another budget")
        with ui.row().classes("w-full items-center"):
            chosen = ui.select(resources, value=first, label="Resource").classes("w-56")
            chosen.on_value_change(self._other_resource)
            self.words = ui.label().classes("text-lg").props("role=status aria-live=polite")
        self.slider_place = ui.column().classes("w-full px-4")
        self.curve = ui.plotly({}).classes("w-full h-80")
        self.curve.props('role=img aria-label="Predicted loss over the budgeted resource"')
        heading("Bits per layer")
        self.bits = ui.plotly({}).classes("w-full h-80")
        self.bits.props('role=img aria-label="Weight bits of every layer; the table says the same"')
        with ui.expansion("As a table").classes("w-full"):
            self.table = ui.table(
                rows=[],
                columns=[
                    {"name": name, "label": name, "field": name, "align": "left"}
                    for name in ("layer", "option", "bits")
                ],
                row_key="layer",
            ).classes("w-full")
        self._slider()
        self._draw()
        self._files()

    def _measured(self) -> None:
        rows = measured_rows(self.found)
        heading("Measured on the model")
        if not rows:
            ui.label("Nothing was measured: the job asked for no verification.")
            return
        found = self.found.verification
        assert found is not None
        columns = [("name", ""), ("loss", f"loss ({found.loss_function})")]
        columns += [("metric", found.metric_name or "metric"), ("note", "note")]
        with ui.row().classes("w-full items-start"):
            table = ui.table(
                rows=rows,
                columns=[
                    {"name": key, "label": label, "field": key, "align": "left"}
                    for key, label in columns
                ],
                row_key="name",
            )
            table.classes("grow").props('dense wrap-cells aria-label="Measured losses"')
            ui.plotly(measured_figure(self.found) or {}).classes("w-full md:w-96 h-64").props(
                'role=img aria-label="Measured losses; the table says the same"'
            )
        for warning in self.found.warnings:
            ui.label(f"Note: {warning}").classes("text-sm")

    def _slider(self) -> None:
        usages = [point.usage for point in self.frontier.points]
        low, high = min(usages), max(usages)
        step = (high - low) / STEPS or 1.0
        now = self.shown.costs.get(self.frontier.resource, high)
        self.slider_place.clear()
        with self.slider_place:
            self.slider = ui.slider(
                min=low,
                max=high,
                step=step,
                value=min(max(now, low), high),
                on_change=self._dragged,
            )
            # Set, not parsed: names of resources come from uploaded tables and may hold anything.
            self.slider.props["aria-label"] = (
                f"Budget of {self.frontier.resource} in {self.frontier.unit}"
            )

    async def _other_resource(self, event: ValueChangeEventArguments[str]) -> None:
        try:
            self.frontier = await self.visit.client.frontier(self.job.id, event.value)
        except MpsearchError as error:
            say_error(error)
            return
        self._slider()
        self._draw()

    async def _dragged(self, event: ValueChangeEventArguments[float | None]) -> None:
        """Solve for where the slider stands; of moves made meanwhile only the last counts."""
        self.wanted = event.value
        if self.solving.locked():
            return
        async with self.solving:
            while self.wanted is not None:
                amount, self.wanted = self.wanted, None
                others = {
                    name: use.limit
                    for name, use in self.found.budgets.items()
                    if name != self.frontier.resource
                }
                try:
                    self.shown = await self.visit.client.solve(
                        self.job.id, {**others, self.frontier.resource: amount}
                    )
                except MpsearchError as error:
                    self.words.set_text(str(error))
                    continue
                self._draw()

    def _draw(self) -> None:
        shown, unit = self.shown, self.frontier.unit
        asked = shown.budgets.get(self.frontier.resource)
        within = "" if asked is None else f"within {_amount(asked.limit, unit)}: "
        use = _amount(shown.costs.get(self.frontier.resource, float("nan")), unit)
        proof = f", gap {shown.gap:.1e}" if shown.gap else ""
        refined = f"; {refinement_line(shown.refinement)}" if shown.refinement else ""
        self.words.set_text(
            f"{within}{shown.status}{proof}, uses {use}, predicted loss "
            f"{shown.predicted_loss:+.4g}{refined}"
        )
        self.curve.update_figure(frontier_figure(self.frontier, shown))
        self.bits.update_figure(bits_figure(shown, self.profile))
        self.table.rows = [
            {"layer": layer, "option": option, "bits": f"{parse_option(option).weight.bits:g}"}
            for layer, option in shown.layers.items()
        ]
        self.table.update()

    def _files(self) -> None:
        heading("Files")
        with ui.row().classes("w-full"):
            for artifact in self.job.artifacts:
                name = artifact.name
                ui.button(
                    f"{name} ({human_size(artifact.size)})",
                    icon="download",
                    on_click=partial(self._download, name, artifact.media_type),
                ).props("flat no-caps")
            ui.button(
                "the allocation shown now", icon="download", on_click=self._download_shown
            ).props("flat no-caps")

    async def _download(self, name: str, media_type: str) -> None:
        try:
            with TemporaryDirectory() as folder:
                path = await self.visit.client.download(self.job, name, Path(folder) / "file")
                content = path.read_bytes()
        except MpsearchError as error:
            say_error(error)
            return
        ui.download.content(content, name, media_type)

    def _download_shown(self) -> None:
        text = self.shown.model_dump_json(indent=1)
        ui.download.content(text.encode(), "allocation.json", "application/json")


def _amount(amount: float, unit: str) -> str:
    return human_size(amount) if unit == "B" else f"{amount:.4g} {unit}"
