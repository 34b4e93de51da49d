from __future__ import annotations

import io

import pytest
from rich.console import Console

from mpsearch.client.progress import job_bars, upload_bar
from mpsearch.schemas.jobs import Event

TIME = "2026-01-01T00:00:00Z"


@pytest.fixture
def screen() -> Console:
    return Console(file=io.StringIO(), width=100)


def event(**fields) -> Event:
    fields = {"id": 1, "time": TIME, "kind": "progress", "attempt": 1, **fields}
    return Event.model_validate(fields)


def last_lines(screen: Console, count: int) -> list[str]:
    return screen.file.getvalue().rstrip().splitlines()[-count:]


def test_every_stage_has_a_bar_that_moves(screen) -> None:
    with job_bars(screen) as on_event:
        on_event(event(kind="status", status="running"))
        on_event(event(stage="profile", progress=0.25, message="3 of 12 layers", eta_seconds=9.4))
    status, stage = last_lines(screen, 2)
    assert "running" in status
    assert "profile" in stage
    assert "25%" in stage
    assert "9 s left  3 of 12 layers" in stage


def test_a_stage_that_begins_ends_those_before_it(screen) -> None:
    with job_bars(screen) as on_event:
        on_event(event(stage="price", progress=0.4))
        on_event(event(stage="profile", progress=0.1))
        on_event(event(kind="status", status="succeeded"))
    shown = {line.split()[0]: line for line in last_lines(screen, 3)}
    assert "100%" in shown["price"]
    assert "10%" in shown["profile"]
    assert "100%" in shown["succeeded"]


def test_a_lost_worker_is_told_and_its_stages_begin_anew(screen) -> None:
    with job_bars(screen) as on_event:
        on_event(event(stage="profile", progress=0.9))
        on_event(event(stage="load", progress=0.2, attempt=2))
    text = screen.file.getvalue()
    assert "the worker was lost; attempt 2" in text
    assert "profile" not in last_lines(screen, 1)[0]


def test_names_from_a_job_are_not_taken_for_markup(screen) -> None:
    with job_bars(screen) as on_event:
        on_event(event(stage="profile", progress=0.5, message="layer[0] [/red]"))
    assert "layer[0] [/red]" in last_lines(screen, 1)[0]


def test_an_upload_has_its_bar(screen) -> None:
    with upload_bar(screen) as on_upload:
        on_upload(0, 4_000_000)
        on_upload(3_000_000, 4_000_000)
    line = last_lines(screen, 1)[0]
    assert "75%" in line
    assert "4.0 MB" in line
