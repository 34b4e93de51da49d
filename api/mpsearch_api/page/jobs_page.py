"""The page at `/`: jobs, newest first, as they stand now."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from mpsearch.client.errors import ServiceError
from mpsearch.schemas.jobs import Job
from mpsearch_api.page.frame import frame
from mpsearch_api.page.session import Door, Visit

__all__ = ["job_row", "register"]

SHOWN = 200
COLUMNS = [
    {"name": "label", "label": "Job", "field": "label", "align": "left"},
    {"name": "status", "label": "State", "field": "status", "align": "left"},
    {"name": "doing", "label": "Progress", "field": "doing", "align": "left"},
    {"name": "budget", "label": "Budget", "field": "budget", "align": "left"},
    {"name": "created", "label": "Submitted", "field": "created", "align": "left"},
]


def job_row(job: Job) -> dict[str, Any]:
    """Say of a job what the list shows.

    Args:
        job: The job.

    Returns:
        A row of the table.
    """
    request = job.request
    budget = ", ".join(f"{name} {amount}" for name, amount in request.budget.items())
    doing = ""
    if job.status == "running":
        doing = f"{job.stage or 'starting'} {job.progress:.0%}"
    elif job.failure is not None:
        doing = job.failure.message[:120]
    return {
        "id": job.id,
        "label": request.label or f"{request.model} on {request.data}",
        "status": job.status,
        "doing": doing,
        "budget": budget or f"{request.goal}, drop at most {request.max_drop}",
        "created": f"{job.created.astimezone():%Y-%m-%d %H:%M:%S}",
    }


def register(door: Door) -> None:
    """Make the page known.

    Args:
        door: Lets people in.
    """

    @ui.page("/")
    async def jobs() -> None:
        await door.enter(_show)


async def _show(visit: Visit) -> None:
    with frame(visit, "Jobs"):
        ui.button("New search", icon="add").props("href=/new")
        table = ui.table(rows=[], columns=COLUMNS, row_key="id", pagination=20)
        table.classes("w-full").props('aria-label="Jobs" :grid="window.innerWidth < 600"')
        table.props('no-data-label="No jobs yet: start with New search"')
        table.add_slot(
            "body-cell-label",
            '<q-td :props="props"><a :href="`/jobs/${props.row.id}`">{{ props.value }}</a></q-td>',
        )
        table.add_slot("item", CARD)
        note = ui.label().classes("text-negative").props("role=status aria-live=polite")

        async def refresh() -> None:
            try:
                rows = [job_row(job) async for job in visit.client.jobs(limit=SHOWN)]
            except ServiceError as error:
                note.set_text(f"not up to date: {error}")
                return
            note.set_text("")
            if rows != table.rows:
                table.rows = rows
                table.update()

        await refresh()
        ui.timer(1.0, refresh)


# On a phone every job is a card, not a row that has to be pushed sideways.
CARD = """
<div class="q-pa-xs col-12"><q-card bordered flat class="q-pa-sm">
  <a :href="`/jobs/${props.row.id}`" class="text-bold">{{ props.row.label }}</a>
  <div>{{ props.row.status }} {{ props.row.doing }}</div>
  <div>{{ props.row.budget }}</div>
  <div class="text-caption">{{ props.row.created }}</div>
</q-card></div>
"""
