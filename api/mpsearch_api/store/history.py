"""Appending events: numbered from 1 within a job, without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert

from mpsearch.schemas.jobs import Event, JobStatus
from mpsearch_api.store.port import Update
from mpsearch_api.store.rows import moment
from mpsearch_api.store.tables import events

__all__ = ["append", "append_all", "status_event", "update_event"]

# Kept in columns of their own.
COLUMNS = {"id", "time", "kind", "attempt"}


def status_event(number: int, now: float, attempt: int, status: JobStatus, message: str) -> Event:
    """Describe a change of status.

    Args:
        number: Of the event within its job.
        now: Unix seconds.
        attempt: Of the job.
        status: The new one.
        message: For people.

    Returns:
        The event.
    """
    return Event(
        id=number,
        time=moment(now),
        kind="status",
        attempt=attempt,
        status=status,
        message=message,
    )


def update_event(number: int, now: float, attempt: int, update: Update) -> Event:
    """Describe what a worker told.

    Args:
        number: Of the event within its job.
        now: Unix seconds.
        attempt: Of the job.
        update: What it told.

    Returns:
        The event.
    """
    return Event(
        id=number,
        time=moment(now),
        kind=update.kind,
        attempt=attempt,
        stage=update.stage,
        progress=update.progress,
        message=update.message,
        eta_seconds=update.eta_seconds,
        data=dict(update.data) | ({"cached": True} if update.cached else {}),
    )


def append(connection: Connection, job: int, now: float, added: Sequence[Event]) -> None:
    """Write events of one job; the caller holds its row and has moved `last_event`.

    Args:
        connection: In a transaction.
        job: Number of the job's row.
        now: Unix seconds.
        added: The events, numbered on from the last.
    """
    append_all(connection, now, [(job, event) for event in added])


def append_all(connection: Connection, now: float, added: Sequence[tuple[int, Event]]) -> None:
    """Write events of several jobs.

    Args:
        connection: In a transaction that holds the jobs.
        now: Unix seconds.
        added: Numbers of the jobs' rows, each with an event.
    """
    rows: list[dict[str, Any]] = [
        {
            "job": job,
            "id": event.id,
            "time": now,
            "kind": event.kind,
            "attempt": event.attempt,
            "body": event.model_dump_json(exclude=COLUMNS, exclude_defaults=True),
        }
        for job, event in added
    ]
    if rows:
        connection.execute(insert(events), rows)
