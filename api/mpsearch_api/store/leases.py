"""The worker's side of the jobs table: every write after the claim carries the attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, func, select, update

from mpsearch.schemas.jobs import Artifact, Failure, JobStatus
from mpsearch_api.store.bells import announce
from mpsearch_api.store.history import append, status_event, update_event
from mpsearch_api.store.port import Claim, Update
from mpsearch_api.store.rows import FRESH, State, advance, claim_of, dump_artifacts
from mpsearch_api.store.tables import jobs, tenants

__all__ = ["change_status", "claim_next", "end", "expire", "lost", "renew", "report"]


def change_status(
    connection: Connection,
    row: Row[Any],
    now: float,
    status: JobStatus,
    message: str,
    **values: Any,
) -> Row[Any]:
    """Move a job to another status and say so in its events.

    Args:
        connection: In a transaction that holds the row.
        row: The job before.
        now: Unix seconds.
        status: The new one.
        message: For people.
        values: Other columns to set.

    Returns:
        The row after.
    """
    number = row.last_event + 1
    attempt = values.get("attempt", row.attempt)
    changed = connection.execute(
        update(jobs)
        .where(jobs.c.number == row.number)
        .values(status=status, last_event=number, **values)
        .returning(*jobs.c)
    ).one()
    append(connection, row.number, now, [status_event(number, now, attempt, status, message[:512])])
    announce(connection)
    return changed


def claim_next(connection: Connection, worker: str, lease: float, now: float) -> Claim | None:
    """Take the oldest queued job of the tenant whose last claim is longest ago.

    Rows that another transaction is claiming are passed over (SKIP LOCKED); tenants that are
    claimed from at the very same moment may get their turns in either order.

    Args:
        connection: In a transaction.
        worker: Who takes it.
        lease: Seconds.
        now: Unix seconds.

    Returns:
        The claim, or None.
    """
    waiting = select(tenants.c.tenant).where(
        exists().where(jobs.c.status == "queued", jobs.c.tenant == tenants.c.tenant)
    )
    for tenant in connection.execute(waiting.order_by(tenants.c.turn, tenants.c.tenant)).scalars():
        row = connection.execute(
            select(jobs)
            .where(jobs.c.status == "queued", jobs.c.tenant == tenant)
            .order_by(jobs.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if row is None:
            continue
        turn = select(func.max(tenants.c.turn) + 1).scalar_subquery()
        connection.execute(update(tenants).where(tenants.c.tenant == tenant).values(turn=turn))
        attempt = row.attempt + 1
        return claim_of(
            change_status(
                connection,
                row,
                now,
                "running",
                f"started (attempt {attempt})",
                attempt=attempt,
                worker=worker,
                lease_until=now + lease,
                started=now,
            )
        )
    return None


def expire(connection: Connection, most_attempts: int, now: float) -> list[str]:
    """Queue again, or fail, the running jobs whose lease ran out.

    Args:
        connection: In a transaction.
        most_attempts: Workers that may die on a job.
        now: Unix seconds.

    Returns:
        Ids of those jobs.
    """
    rows = connection.execute(
        select(jobs)
        .where(jobs.c.status == "running", jobs.c.lease_until <= now)
        .order_by(jobs.c.number)
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        deaths = row.deaths + 1
        if deaths < most_attempts:
            requeue(connection, row, now, "worker died; queued again", deaths=deaths)
            continue
        failure = Failure(
            kind="worker_died",
            message=f"worker died {deaths} times, the last time {row.worker}; no more attempts",
            exit_code=4,
        )
        change_status(
            connection,
            row,
            now,
            "failed",
            failure.message,
            deaths=deaths,
            failure=failure.model_dump_json(),
            finished=now,
            lease_until=None,
        )
    return [row.id for row in rows]


def requeue(connection: Connection, row: Row[Any], now: float, message: str, **values: Any) -> None:
    """Put a running job back into the queue, at its old place.

    Args:
        connection: In a transaction that holds the row.
        row: The job before.
        now: Unix seconds.
        message: For people.
        values: Other columns to set.
    """
    change_status(
        connection,
        row,
        now,
        "queued",
        message,
        state=FRESH,
        started=None,
        worker=None,
        lease_until=None,
        **values,
    )


def renew(connection: Connection, claims: Sequence[Claim], lease: float, now: float) -> list[Claim]:
    """Extend leases, also those that ran out and that nobody has taken over yet.

    Args:
        connection: In a transaction.
        claims: What the caller holds.
        lease: Seconds.
        now: Unix seconds.

    Returns:
        The claims that no longer hold.
    """
    if not claims:
        return []
    # Locked in one order, so that two dispatchers cannot wait for each other.
    rows = connection.execute(_running(claims).order_by(jobs.c.number).with_for_update()).all()
    held = {(claim.job, claim.attempt) for claim in claims}
    connection.execute(
        update(jobs)
        .where(jobs.c.number.in_([r.number for r in rows if (r.id, r.attempt) in held]))
        .values(lease_until=now + lease)
    )
    return _others(claims, rows)


def lost(connection: Connection, claims: Sequence[Claim]) -> list[Claim]:
    """Tell which claims no longer hold.

    Args:
        connection: Any.
        claims: What the caller holds.

    Returns:
        Those.
    """
    if not claims:
        return []
    return _others(claims, connection.execute(_running(claims)).all())


def report(connection: Connection, claim: Claim, updates: Sequence[Update], now: float) -> bool:
    """Append events and move the progress.

    Args:
        connection: In a transaction.
        claim: Under which claim.
        updates: What happened.
        now: Unix seconds.

    Returns:
        Whether the claim held.
    """
    row = _hold(connection, claim)
    if row is None:
        return False
    state = State.model_validate_json(row.state)
    for told in updates:
        state = advance(state, told)
    added = [
        update_event(row.last_event + place, now, claim.attempt, told)
        for place, told in enumerate(updates, start=1)
    ]
    if added:
        connection.execute(
            update(jobs)
            .where(jobs.c.number == row.number)
            .values(last_event=row.last_event + len(added), state=state.model_dump_json())
        )
        append(connection, row.number, now, added)
        announce(connection)
    return True


def end(
    connection: Connection,
    claim: Claim,
    now: float,
    artifacts: Sequence[Artifact],
    failure: Failure | None,
) -> bool:
    """End a job and publish what it made.

    Args:
        connection: In a transaction.
        claim: Under which claim.
        now: Unix seconds.
        artifacts: What to publish.
        failure: Why it failed; None: it succeeded.

    Returns:
        Whether the claim held.
    """
    row = _hold(connection, claim)
    if row is None:
        return False
    state = State.model_validate_json(row.state)
    if failure is None:
        state = state.model_copy(update={"progress": 1.0, "message": "", "eta_seconds": None})
    else:
        state = state.model_copy(update={"eta_seconds": None})
    change_status(
        connection,
        row,
        now,
        "succeeded" if failure is None else "failed",
        "done" if failure is None else failure.message,
        state=state.model_dump_json(),
        artifacts=dump_artifacts(list(artifacts)),
        failure=None if failure is None else failure.model_dump_json(),
        finished=now,
        lease_until=None,
    )
    return True


def release(connection: Connection, claim: Claim, now: float) -> bool:
    """Put the job back into the queue; nobody died.

    Args:
        connection: In a transaction.
        claim: Under which claim.
        now: Unix seconds.

    Returns:
        Whether the claim held.
    """
    row = _hold(connection, claim)
    if row is None:
        return False
    requeue(connection, row, now, "the worker is shutting down; queued again")
    return True


def _running(claims: Sequence[Claim]) -> Select[tuple[int, str, int]]:
    """Ask for the claimed jobs that run, under whichever attempt."""
    names = {claim.job for claim in claims}
    return select(jobs.c.number, jobs.c.id, jobs.c.attempt).where(
        jobs.c.id.in_(sorted(names)), jobs.c.status == "running"
    )


def _others(claims: Sequence[Claim], rows: Sequence[Row[Any]]) -> list[Claim]:
    running = {(row.id, row.attempt) for row in rows}
    return [claim for claim in claims if (claim.job, claim.attempt) not in running]


def _hold(connection: Connection, claim: Claim) -> Row[Any] | None:
    """Lock the job's row to the end of the transaction, if the claim still holds."""
    return connection.execute(
        select(jobs)
        .where(jobs.c.id == claim.job, jobs.c.status == "running", jobs.c.attempt == claim.attempt)
        .with_for_update()
    ).one_or_none()
