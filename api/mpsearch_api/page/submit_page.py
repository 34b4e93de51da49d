"""The page at `/new`: what to search, and within which budgets."""

from __future__ import annotations

import json
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments
from pydantic import ValidationError

from mpsearch.errors import MpsearchError
from mpsearch.schemas.jobs import Execution, JobRequest
from mpsearch.schemas.uploads import StoredKind
from mpsearch_api.page.frame import frame, heading
from mpsearch_api.page.session import Door, Visit, say_error

__all__ = ["register"]

MENUS = {
    "integers, 8-bit activations": ["w2a8", "w3a8", "w4a8", "w6a8", "w8a8"],
    "integers, weights only": ["w2", "w3", "w4", "w6", "w8"],
    "8-bit or float": ["w8a8", "float"],
    "FP8 and FP4": ["w:mxfp4/a:fp8_e4m3", "w:fp8_e4m3/a:fp8_e4m3", "float"],
    "grouped 4-bit, 8-bit": ["int3_g64", "int4_g128", "int8"],
}
RESOURCES = ["weight_memory", "activation_memory", "average_bits", "bops", "latency", "energy"]
FIRST_BUDGET = ("weight_memory", "0.12x")
AIMS = {
    "loss": "Least loss within the budgets",
    "use": "Least use of a resource at a bearable drop of the metric",
}
FIELD = "w-full sm:w-96"


def register(door: Door) -> None:
    """Make the page known.

    Args:
        door: Lets people in.
    """

    @ui.page("/new")
    async def new() -> None:
        await door.enter(_show)


async def _show(visit: Visit) -> None:
    form = _Form(visit)
    with frame(visit, "New search"):
        await form.build()


class _Form:
    """The form and what is filled in so far."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.budgets: list[tuple[ui.select, ui.input]] = []

    async def build(self) -> None:
        """Lay the form out."""
        client = self.visit.client
        estimators = [entry["name"] for entry in await client.estimators()]
        devices = {
            entry.stored.id if entry.stored else entry.name: entry.name
            async for entry in client.devices()
        }
        heading("Model and data")
        with ui.row().classes("w-full"):
            self.model = await self._chooser("model", "digits-resnet", "architecture")
            self.data = await self._chooser("dataset", "digits", None)
        heading("What layers may get")
        with ui.row().classes("w-full items-center"):
            menu = ui.select(list(MENUS), label="Start from").classes(FIELD)
            self.options = ui.input_chips(
                "Options", value=MENUS["integers, 8-bit activations"], new_value_mode="add-unique"
            ).classes("w-full sm:grow")
        menu.on_value_change(lambda event: self.options.set_value(MENUS[event.value]))
        with ui.row().classes("w-full"):
            self.estimator = ui.select(estimators, label="Estimator", value="measured_loss")
            self.estimator.classes(FIELD)
            self.hardware = ui.select(devices, label="Hardware", clearable=True, with_input=True)
            self.hardware.classes(FIELD)
        heading("Aim and budgets")
        self._ask_aim()
        self.rows = ui.column().classes("w-full")
        self._add_budget(*FIRST_BUDGET)
        ui.button("Another budget", icon="add", on_click=lambda: self._add_budget("bops", "50%"))
        with ui.expansion("More").classes("w-full"), ui.row().classes("w-full items-center"):
            self.label = ui.input("Name for people").classes(FIELD)
            self.seed = ui.number("Seed", value=0, min=0, precision=0)
            self.memory = ui.input("Memory", value="4GiB")
            self.time = ui.number("Time limit, seconds", value=3600, min=1)
            self.verify = ui.checkbox("Run the answer on the model", value=True)
            self.refine = ui.number("Proposals to measure", min=0, precision=0)
            self.refine.classes("w-72").props('hint="beside the predicted best; empty: as usual"')
            self.refine.bind_visibility_from(self.aim, "value", value="loss")
        ui.button("Start the search", icon="play_arrow", on_click=self._submit).props("size=lg")

    async def _chooser(self, kind: StoredKind, bundled: str, extra: str | None) -> ui.select:
        stored = {
            record.id: f"{record.name} ({record.id})"
            async for record in self.visit.client.stored(kind, limit=100)
        }
        label = {"model": "Model", "dataset": "Data"}[kind]
        with ui.column().classes(FIELD):
            chosen = ui.select(
                {bundled: f"{bundled} (bundled)", **stored},
                label=label,
                value=bundled,
                with_input=True,
                new_value_mode="add-unique",
            ).classes("w-full")
            query = ""
            if extra is not None:
                field = ui.input(
                    "Architecture of the weights", placeholder="torchvision:resnet18"
                ).classes("w-full")
                field.props('hint="only for .safetensors"')
                query = (
                    f" + '&{extra}=' + encodeURIComponent(getElement({field.id}).modelValue||'')"
                )
            self._uploader(label, f"/v1/{kind}s", query, chosen)
        return chosen

    def _uploader(self, label: str, path: str, query: str, chosen: ui.select) -> None:
        """Send a file from the browser straight to the API: no copy goes through the page."""
        key = self.visit.key
        headers = [{"name": "Content-Type", "value": "application/octet-stream"}]
        if key is not None:
            headers.append({"name": "Authorization", "value": f"Bearer {key}"})
        url = f"files => '{path}?name=' + encodeURIComponent(files[0].name){query}"
        uploader = ui.element("q-uploader").classes("w-full")
        uploader.props(f'send-raw auto-upload flat bordered label="Upload {label.lower()}"')
        uploader.props[":url"] = url
        uploader.props["headers"] = headers

        def done(event: GenericEventArguments) -> None:
            record = json.loads(event.args)
            chosen.options[record["id"]] = f"{record['name']} ({record['id']})"
            chosen.update()
            chosen.set_value(record["id"])
            ui.notify(f"{record['name']}: sha256 {record['sha256'][:16]}…", type="positive")

        def refused(event: GenericEventArguments) -> None:
            ui.notify(event.args, type="negative", timeout=0, close_button="Close")

        uploader.on("uploaded", done, js_handler="(info) => emit(info.xhr.responseText)")
        uploader.on(
            "failed",
            refused,
            js_handler="(info) => { let said = info.xhr ? info.xhr.responseText : '';"
            " try { said = JSON.parse(said).detail } catch (_) {}"
            " emit(said || 'the upload was interrupted') }",
        )

    def _ask_aim(self) -> None:
        self.aim = ui.radio(AIMS, value="loss").props('inline aria-label="Aim"')
        with ui.row().classes("w-full items-center") as row:
            self.least = ui.select(RESOURCES, label="Least", value="weight_memory")
            self.least.classes("w-56")
            self.drop = ui.number("Largest drop, percent", value=1, min=0, max=99)
            self.drop.classes("w-56").props('hint="of the metric, measured"')
        row.bind_visibility_from(self.aim, "value", value="use")
        self.aim.on_value_change(self._follow_aim)

    def _follow_aim(self) -> None:
        """Take away the budget that the form begins with, and bring it back, as the aim needs."""
        values = [(resource.value, amount.value) for resource, amount in self.budgets]
        if self.aim.value == "use" and values == [FIRST_BUDGET]:
            self.budgets.clear()
            self.rows.clear()
        elif self.aim.value == "loss" and not values:
            self._add_budget(*FIRST_BUDGET)

    def _add_budget(self, resource: str, amount: str) -> None:
        with self.rows, ui.row().classes("w-full items-center") as row:
            pair = (
                ui.select(RESOURCES, label="Resource", value=resource).classes("w-56"),
                ui.input("Amount", value=amount).props('hint="0.25x, 3 MB, 2.5 ms, 50%"'),
            )
            self.budgets.append(pair)

            def remove() -> None:
                self.budgets.remove(pair)
                row.delete()

            ui.button(icon="delete", on_click=remove).props('flat aria-label="Remove this budget"')

    def _request(self) -> JobRequest:
        given: dict[str, Any] = {
            "model": self.model.value,
            "data": self.data.value,
            "options": self.options.value,
            "estimator": self.estimator.value,
            "hardware": self.hardware.value or None,
            "budget": {resource.value: amount.value for resource, amount in self.budgets},
            "verify": self.verify.value,
            "seed": int(self.seed.value or 0),
            "label": self.label.value or "",
            **self._aim(),
            "execution": Execution(memory=self.memory.value, time_limit=self.time.value),
        }
        return JobRequest(**given)

    def _aim(self) -> dict[str, Any]:
        if self.aim.value == "loss":
            return {} if self.refine.value is None else {"refine": int(self.refine.value)}
        drop = None if self.drop.value is None else self.drop.value / 100
        return {"goal": f"min:{self.least.value}", "max_drop": drop}

    async def _submit(self) -> None:
        try:
            job = await self.visit.client.submit(self._request())
        except ValidationError as error:
            ui.notify(error.errors()[0]["msg"], type="negative", timeout=0, close_button="Close")
        except MpsearchError as error:
            say_error(error)
        else:
            ui.navigate.to(f"/jobs/{job.id}")
