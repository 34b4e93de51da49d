"""Queueing jobs, several in one transaction."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from mpsearch.schemas.jobs import Job, JobRequest
from mpsearch_api.faults import IdempotencyError, QuotaError
from mpsearch_api.store.history import append_all, status_event
from mpsearch_api.store.ids import new_id
from mpsearch_api.store.rows import FRESH, job_of, moment
from mpsearch_api.store.tables import idempotency, jobs, tenants

__all__ = ["KEY_SECONDS", "Submission", "hold_tenants", "submit_all"]

# How long an idempotency key is remembered.
KEY_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Submission:
    """One call of `JobStore.submit`."""

    tenant: str
    request: JobRequest
    idempotency_key: str | None
    most_open: int | None

    @property
    def key(self) -> tuple[str, str] | None:
        """Tenant and hash of the key; a header may carry anything, lone surrogates too."""
        if self.idempotency_key is None:
            return None
        content = self.idempotency_key.encode("utf-8", "surrogatepass")
        return self.tenant, hashlib.sha256(content).hexdigest()

    def request_sha256(self) -> str:
        """Tell equal requests; the order of members says nothing."""
        content = json.dumps(self.request.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


Made = dict[tuple[str, str], tuple[str, Job]]


def submit_all(
    connection: Connection, submissions: Sequence[Submission], now: float
) -> list[tuple[Job, bool] | Exception]:
    """Queue several jobs, with as many statements as one takes.

    Args:
        connection: In a transaction.
        submissions: What to queue.
        now: Unix seconds.

    Returns:
        For each the job and whether it is new, or why it was refused.
    """
    hold_tenants(connection, {submission.tenant for submission in submissions})
    made = _made_before(connection, submissions, now)
    still_open = _count_open(connection, submissions)
    results: list[tuple[Job, bool] | Exception] = []
    added: list[tuple[Submission, Job]] = []
    for submission in submissions:
        try:
            earlier = _earlier(submission, made)
            if earlier is not None:
                results.append((earlier, False))
                continue
            _check_quota(submission, still_open[submission.tenant])
        except (IdempotencyError, QuotaError) as error:
            results.append(error)
            continue
        job = Job(
            id=new_id("job", now),
            status="queued",
            attempt=0,
            request=submission.request,
            created=moment(now),
        )
        if submission.key is not None:
            made[submission.key] = (submission.request_sha256(), job)
        still_open[submission.tenant] += 1
        added.append((submission, job))
        results.append((job, True))
    _insert(connection, added, now)
    return results


def hold_tenants(connection: Connection, names: Iterable[str]) -> None:
    """Lock tenants' rows to the end of the transaction, so that their quotas count right.

    Args:
        connection: In a transaction.
        names: Which; always locked in one order, so that two servers cannot lock each other out.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        dialect.insert(tenants).on_conflict_do_update(
            index_elements=[tenants.c.tenant], set_={"turn": tenants.c.turn}
        ),
        [{"tenant": name, "turn": 0} for name in sorted(names)],
    )


def _made_before(connection: Connection, submissions: Sequence[Submission], now: float) -> Made:
    """Find the jobs that these keys made, forgetting keys that are too old."""
    keys = {submission.key for submission in submissions if submission.key is not None}
    if not keys:
        return {}
    owners = {tenant for tenant, _key in keys}
    _forget_old_keys(connection, owners, now)
    rows = connection.execute(
        select(jobs, idempotency.c.key_sha256, idempotency.c.request_sha256)
        .join(idempotency, idempotency.c.job == jobs.c.id)
        .where(
            idempotency.c.tenant.in_(owners),
            idempotency.c.key_sha256.in_({key for _tenant, key in keys}),
        )
    )
    return {(row.tenant, row.key_sha256): (row.request_sha256, job_of(row)) for row in rows}


def _forget_old_keys(connection: Connection, owners: set[str], now: float) -> None:
    """Forget keys that are too old, save those that are being deleted with their jobs.

    Waiting for these would let two transactions wait for each other, which delete the same keys in
    different orders.
    """
    old = select(idempotency.c.tenant, idempotency.c.key_sha256).where(
        idempotency.c.tenant.in_(owners), idempotency.c.created < now - KEY_SECONDS
    )
    found = connection.execute(old.with_for_update(skip_locked=True)).all()
    if found:
        connection.execute(
            delete(idempotency).where(
                idempotency.c.tenant == bindparam("owner"),
                idempotency.c.key_sha256 == bindparam("name"),
            ),
            [{"owner": row.tenant, "name": row.key_sha256} for row in found],
        )


def _earlier(submission: Submission, made: Made) -> Job | None:
    if submission.key is None or submission.key not in made:
        return None
    asked, job = made[submission.key]
    if asked != submission.request_sha256():
        raise IdempotencyError(
            f"Idempotency-Key {str(submission.idempotency_key)[:60]!r} was used with another "
            f"request, for job {job.id}; send a new key with a new request"
        )
    return job


def _count_open(connection: Connection, submissions: Sequence[Submission]) -> Counter[str]:
    limited = {found.tenant for found in submissions if found.most_open is not None}
    counts: Counter[str] = Counter()
    if limited:
        query = (
            select(jobs.c.tenant, func.count().label("open"))
            .where(jobs.c.status.in_(["queued", "running"]), jobs.c.tenant.in_(limited))
            .group_by(jobs.c.tenant)
        )
        counts.update({row.tenant: row.open for row in connection.execute(query)})
    return counts


def _check_quota(submission: Submission, found: int) -> None:
    if submission.most_open is not None and found >= submission.most_open:
        raise QuotaError(
            f"{found} jobs are queued or running, and {submission.most_open} are allowed; wait "
            "for some to end, or cancel some",
            retry_after=5.0,
        )


def _insert(connection: Connection, added: Sequence[tuple[Submission, Job]], now: float) -> None:
    if not added:
        return
    numbers = connection.execute(
        insert(jobs).returning(jobs.c.number, sort_by_parameter_order=True),
        [
            {
                "id": job.id,
                "tenant": submission.tenant,
                "status": "queued",
                "attempt": 0,
                "deaths": 0,
                "created": now,
                "last_event": 1,
                "request": submission.request.model_dump_json(),
                "state": FRESH,
                "artifacts": "[]",
            }
            for submission, job in added
        ],
    ).scalars()
    first = status_event(1, now, 0, "queued", "queued")
    append_all(connection, now, [(number, first) for number in numbers])
    keyed = [
        {
            "tenant": submission.key[0],
            "key_sha256": submission.key[1],
            "request_sha256": submission.request_sha256(),
            "job": job.id,
            "created": now,
        }
        for submission, job in added
        if submission.key is not None
    ]
    if keyed:
        connection.execute(insert(idempotency), keyed)
