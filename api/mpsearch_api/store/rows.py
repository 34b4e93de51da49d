"""Rows of the jobs and events tables, as the objects that clients and workers see."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from mpsearch.schemas.document import Record
from mpsearch.schemas.jobs import Artifact, Event, Failure, Job, JobRequest, Stage
from mpsearch_api.store.port import Claim, Update

__all__ = [
    "FRESH",
    "State",
    "advance",
    "claim_of",
    "dump_artifacts",
    "event_of",
    "job_of",
    "moment",
]


class State(Record):
    """How far a running job is; one column, since nothing is ever searched by it."""

    stage: Stage | None = None
    progress: float = 0.0
    message: str = ""
    eta_seconds: float | None = None
    cached: tuple[Stage, ...] = ()


FRESH = State().model_dump_json()


def moment(seconds: float) -> datetime:
    """Give Unix seconds as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def job_of(row: Row[Any]) -> Job:
    """Read a job.

    Args:
        row: Of the jobs table, all columns.

    Returns:
        The job.
    """
    state = State.model_validate_json(row.state)
    return Job(
        id=row.id,
        status=row.status,
        attempt=row.attempt,
        request=JobRequest.model_validate_json(row.request),
        created=moment(row.created),
        started=None if row.started is None else moment(row.started),
        finished=None if row.finished is None else moment(row.finished),
        stage=state.stage,
        progress=state.progress,
        message=state.message,
        eta_seconds=state.eta_seconds,
        cached=list(state.cached),
        failure=None if row.failure is None else Failure.model_validate_json(row.failure),
        artifacts=[Artifact(**found) for found in json.loads(row.artifacts)],
    )


def claim_of(row: Row[Any]) -> Claim:
    """Read the claim on a running job.

    Args:
        row: Of the jobs table, after the claim.

    Returns:
        The claim.
    """
    return Claim(
        job=row.id,
        tenant=row.tenant,
        attempt=row.attempt,
        worker=row.worker,
        request=JobRequest.model_validate_json(row.request),
    )


def event_of(row: Row[Any]) -> Event:
    """Read an event.

    Args:
        row: Of the events table.

    Returns:
        The event.
    """
    return Event(
        id=row.id,
        time=moment(row.time),
        kind=row.kind,
        attempt=row.attempt,
        **json.loads(row.body),
    )


def dump_artifacts(artifacts: list[Artifact]) -> str:
    """Give artifacts as the text of their column."""
    return json.dumps([artifact.model_dump() for artifact in artifacts])


def advance(state: State, update: Update) -> State:
    """Move a job's progress by one update.

    Args:
        state: Before.
        update: What happened.

    Returns:
        The state after it; only `progress` updates move stage and share.
    """
    changes: dict[str, Any] = {}
    if update.cached and update.stage not in state.cached:
        changes["cached"] = (*state.cached, update.stage)
    if update.kind == "progress":
        share = update.progress
        if share is None:
            share = state.progress if update.stage == state.stage else 0.0
        changes |= {
            "stage": update.stage,
            "progress": share,
            "message": update.message,
            "eta_seconds": update.eta_seconds,
        }
    return State(**(state.model_dump() | changes))
