"""Queueing jobs, several in one transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from mpsearch.schemas.jobs import Job, JobRequest
from mpsearch_api.faults import IdempotencyError, QuotaError
from mpsearch_api.store.history import append, status_event
from mpsearch_api.store.ids import new_id
from mpsearch_api.store.rows import State, job_of
from mpsearch_api.store.tables import idempotency, jobs, tenants

__all__ = ["KEY_SECONDS", "Submission", "submit_all"]

# How long an idempotency key is remembered.
KEY_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Submission:
    """One call of `JobStore.submit`."""

    tenant: str
    request: JobRequest
    idempotency_key: str | None
    most_open: int | None


def submit_all(
    connection: Connection, submissions: Sequence[Submission], now: float
) -> list[tuple[Job, bool] | Exception]:
    """Queue several jobs.

    Args:
        connection: In a transaction.
        submissions: What to queue.
        now: Unix seconds.

    Returns:
        For each the job and whether it is new, or why it was refused.
    """
    # In one order everywhere: two servers that lock the same tenants then cannot lock each
    # other out.
    for tenant in sorted({submission.tenant for submission in submissions}):
        _hold_tenant(connection, tenant)
    results: list[tuple[Job, bool] | Exception] = []
    for submission in submissions:
        try:
            results.append(_submit(connection, submission, now))
        except (IdempotencyError, QuotaError) as error:
            # Both are raised before anything was written.
            results.append(error)
    return results


def _hold_tenant(connection: Connection, tenant: str) -> None:
    """Lock the tenant's row to the end of the transaction, so that its quota counts right."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(tenants).values(tenant=tenant, turn=0)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[tenants.c.tenant], set_={"turn": tenants.c.turn}
        )
    )


def _submit(connection: Connection, submission: Submission, now: float) -> tuple[Job, bool]:
    key = _hash(submission.idempotency_key)
    asked = _hash(json.dumps(submission.request.model_dump(mode="json"), sort_keys=True))
    if key is not None:
        earlier = _earlier(connection, submission, key, asked, now)
        if earlier is not None:
            return earlier, False
    _check_quota(connection, submission)
    name = new_id("job", now)
    row = connection.execute(
        insert(jobs)
        .values(
            id=name,
            tenant=submission.tenant,
            status="queued",
            attempt=0,
            deaths=0,
            created=now,
            last_event=1,
            request=submission.request.model_dump_json(),
            state=State().model_dump_json(),
            artifacts="[]",
        )
        .returning(*jobs.c)
    ).one()
    append(connection, row.number, now, [status_event(1, now, 0, "queued", "queued")])
    if key is not None:
        connection.execute(
            insert(idempotency).values(
                tenant=submission.tenant,
                key_sha256=key,
                request_sha256=asked,
                job=name,
                created=now,
            )
        )
    return job_of(row), True


def _hash(text: str | None) -> str | None:
    if text is None:
        return None
    # A header may carry anything; lone surrogates have no UTF-8.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _earlier(
    connection: Connection, submission: Submission, key: str, asked: str | None, now: float
) -> Job | None:
    """Find the job that this key made, forgetting keys that are too old."""
    connection.execute(
        delete(idempotency).where(
            idempotency.c.tenant == submission.tenant, idempotency.c.created < now - KEY_SECONDS
        )
    )
    row = connection.execute(
        select(jobs, idempotency.c.request_sha256)
        .join(idempotency, idempotency.c.job == jobs.c.id)
        .where(idempotency.c.tenant == submission.tenant, idempotency.c.key_sha256 == key)
    ).one_or_none()
    if row is None:
        return None
    if row.request_sha256 != asked:
        raise IdempotencyError(
            f"Idempotency-Key {str(submission.idempotency_key)[:60]!r} was used with another "
            f"request, for job {row.id}; send a new key with a new request"
        )
    return job_of(row)


def _check_quota(connection: Connection, submission: Submission) -> None:
    if submission.most_open is None:
        return
    found = connection.execute(
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.tenant == submission.tenant, jobs.c.status.in_(["queued", "running"]))
    ).scalar_one()
    if found >= submission.most_open:
        raise QuotaError(
            f"{found} jobs are queued or running, and {submission.most_open} are allowed; wait "
            "for some to end, or cancel some",
            retry_after=5.0,
        )
