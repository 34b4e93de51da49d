"""The page at `/jobs/ID`: stages as they run, then the answer."""

from __future__ import annotations

from nicegui import ui

from mpsearch.client.errors import NotFoundError, ServiceError
from mpsearch.errors import MpsearchError
from mpsearch.schemas.jobs import STAGES, Job, Stage
from mpsearch_api.page.answer import Answer
from mpsearch_api.page.frame import frame, heading
from mpsearch_api.page.session import Door, Visit, say_error

__all__ = ["register", "stage_shares"]


def stage_shares(job: Job) -> dict[Stage, float]:
    """Tell how much of every stage is done.

    Args:
        job: The job.

    Returns:
        Stage -> share in [0, 1].
    """
    if job.status == "succeeded":
        return dict.fromkeys(STAGES, 1.0)
    reached = STAGES.index(job.stage) if job.stage is not None else -1
    shares: dict[Stage, float] = {
        stage: 1.0 if index < reached else 0.0 for index, stage in enumerate(STAGES)
    }
    if job.stage is not None:
        shares[job.stage] = job.progress
    return shares


def register(door: Door) -> None:
    """Make the page known.

    Args:
        door: Lets people in.
    """

    @ui.page("/jobs/{job}")
    async def one(job: str) -> None:
        async def show(visit: Visit) -> None:
            await _show(visit, job)

        await door.enter(show)


async def _show(visit: Visit, identity: str) -> None:
    try:
        job = await visit.client.job(identity)
    except NotFoundError:
        with frame(visit, "No such job"):
            ui.link("Back to the list", "/")
        return
    with frame(visit, job.request.label or f"{job.request.model} on {job.request.data}"):
        await _Live(visit, job).build()


class _Live:
    """The page of one job, kept up to date until the job ends."""

    def __init__(self, visit: Visit, job: Job) -> None:
        self.visit = visit
        self.job = job

    async def build(self) -> None:
        """Lay the page out, with the answer if there is one already."""
        with ui.row().classes("items-center gap-4"):
            self.state = ui.badge().classes("text-base").props("role=status aria-live=polite")
            self.cancel = ui.button("Cancel", icon="stop", on_click=self._cancel)
            self.cancel.props("flat color=negative")
        self.message = ui.label().props("role=status aria-live=polite")
        self.bars = {}
        with ui.grid().classes("w-full grid-cols-2 sm:grid-cols-3 md:grid-cols-6 gap-2"):
            for stage in STAGES:
                with ui.column().classes("gap-0"):
                    ui.label(stage).props(f"id=stage-{stage}")
                    bar = ui.linear_progress(value=0, show_value=False, size="12px")
                    self.bars[stage] = bar.props(f"aria-labelledby=stage-{stage} instant-feedback")
        self.failure = ui.column().classes("w-full")
        self.answer = ui.column().classes("w-full")
        await self._draw()
        if not self.job.ended:
            self.timer = ui.timer(0.5, self._refresh)

    async def _refresh(self) -> None:
        try:
            self.job = await self.visit.client.job(self.job.id)
        except ServiceError as error:
            self.message.set_text(f"not up to date: {error}")
            return
        if self.job.ended:
            self.timer.deactivate()
        await self._draw()

    async def _draw(self) -> None:
        job = self.job
        self.state.set_text(job.status)
        attempt = f" (attempt {job.attempt})" if job.attempt > 1 else ""
        eta = f", about {job.eta_seconds:.0f} s left" if job.eta_seconds else ""
        self.message.set_text("" if job.ended else f"{job.message}{eta}{attempt}")
        self.cancel.set_visibility(not job.ended)
        for stage, share in stage_shares(job).items():
            self.bars[stage].set_value(share)
            cached = " (cached)" if stage in job.cached else ""
            self.bars[stage].props(f'aria-valuetext="{share:.0%}{cached}"')
        if job.failure is not None:
            self._explain()
        if job.status == "succeeded":
            with self.answer:
                await Answer(self.visit, job).build()

    def _explain(self) -> None:
        failure = self.job.failure
        if failure is None or self.failure.default_slot.children:
            return
        with self.failure:
            heading(f"Failed: {failure.kind.replace('_', ' ')}")
            ui.label(failure.message).classes("whitespace-pre-wrap").props("role=alert")
            for resource, least in failure.minimum.items():
                ui.label(f"least achievable {resource}: {least:.6g}")
            if failure.log_tail:
                # As text: what `ui.code` shows passes through Markdown, HTML in it included.
                with ui.expansion("Last lines of its log").classes("w-full"):
                    ui.label(failure.log_tail).classes(
                        "w-full whitespace-pre overflow-x-auto font-mono text-sm"
                    )

    async def _cancel(self) -> None:
        try:
            self.job = await self.visit.client.cancel(self.job.id)
        except MpsearchError as error:
            say_error(error)
        await self._draw()
