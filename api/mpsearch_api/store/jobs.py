"""Jobs in a SQL database, SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select

from mpsearch.schemas.jobs import (
    Artifact,
    Event,
    Failure,
    Job,
    JobRequest,
    JobStatus,
    Page,
)
from mpsearch_api.faults import StateError
from mpsearch_api.store import cursor as cursors
from mpsearch_api.store import leases
from mpsearch_api.store.bells import announce
from mpsearch_api.store.database import Database
from mpsearch_api.store.grouping import GroupCommit
from mpsearch_api.store.ids import is_id
from mpsearch_api.store.port import Claim, Update
from mpsearch_api.store.rows import event_of, job_of
from mpsearch_api.store.submitting import Submission, submit_all
from mpsearch_api.store.tables import events, jobs

__all__ = ["SqlJobs"]

ENDED = ("succeeded", "failed", "cancelled")
MOST_ROWS = 1000


class SqlJobs:
    """The job store, as `port.JobStore` describes it; each call is one transaction.

    Args:
        database: Where.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._submit: GroupCommit[Submission, tuple[Job, bool]] = GroupCommit(self._submit_all)

    def submit(
        self,
        tenant: str,
        request: JobRequest,
        *,
        idempotency_key: str | None = None,
        most_open: int | None = None,
    ) -> tuple[Job, bool]:
        """See `port.JobStore.submit`."""
        return self._submit(Submission(tenant, request, idempotency_key, most_open))

    def _submit_all(
        self, submissions: Sequence[Submission]
    ) -> Sequence[tuple[Job, bool] | Exception]:
        with self._database.write() as connection:
            return submit_all(connection, submissions, self._database.now(connection))

    def get(self, tenant: str | None, job: str) -> Job | None:
        """See `port.JobStore.get`."""
        if not is_id("job", job):
            return None
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(*_named(tenant, job))).one_or_none()
        return None if row is None else job_of(row)

    def version(self, tenant: str | None, job: str) -> int | None:
        """Read the id of a job's last event, which grows with every change of the job.

        Args:
            tenant: Whose.
            job: Id.

        Returns:
            The id, or None when there is no such job.
        """
        if not is_id("job", job):
            return None
        with self._database.read() as connection:
            return connection.execute(
                select(jobs.c.last_event).where(*_named(tenant, job))
            ).scalar_one_or_none()

    def page(
        self,
        tenant: str | None,
        *,
        status: JobStatus | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Job]:
        """See `port.JobStore.page`."""
        listing = f"jobs:{status or ''}"
        limit = max(1, min(limit, MOST_ROWS))
        query = select(jobs).order_by(jobs.c.number.desc()).limit(limit + 1)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if cursor is not None:
            query = query.where(jobs.c.number < cursors.decode(listing, cursor))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(
            items=[job_of(row) for row in rows],
            next=cursors.encode(listing, rows[-1].number) if more else None,
        )

    def cancel(self, tenant: str | None, job: str) -> Job | None:
        """See `port.JobStore.cancel`."""
        if not is_id("job", job):
            return None
        with self._database.write() as connection:
            row = connection.execute(
                select(jobs).where(*_named(tenant, job)).with_for_update()
            ).one_or_none()
            if row is None or row.status in ENDED:
                return None if row is None else job_of(row)
            now = self._database.now(connection)
            return job_of(
                leases.change_status(
                    connection, row, now, "cancelled", "cancelled", finished=now, lease_until=None
                )
            )

    def delete(self, tenant: str | None, job: str) -> bool:
        """See `port.JobStore.delete`."""
        if not is_id("job", job):
            return False
        with self._database.write() as connection:
            row = connection.execute(
                select(jobs.c.number, jobs.c.status).where(*_named(tenant, job)).with_for_update()
            ).one_or_none()
            if row is None:
                return False
            if row.status not in ENDED:
                raise StateError(f"job {job} is {row.status}; cancel it before deleting it")
            connection.execute(delete(jobs).where(jobs.c.number == row.number))
            announce(connection)
            return True

    def claim(self, worker: str, lease: float, *, most_attempts: int = 3) -> Claim | None:
        """See `port.JobStore.claim`."""
        if not self._work_waits():
            return None
        with self._database.write() as connection:
            now = self._database.now(connection)
            leases.expire(connection, most_attempts, now)
            return leases.claim_next(connection, worker, lease, now)

    def _work_waits(self) -> bool:
        """Look without locking anything: idle dispatchers ask several times a second."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            queued = select(jobs.c.number).where(jobs.c.status == "queued").limit(1)
            late = select(jobs.c.number).where(jobs.c.lease_until <= now).limit(1)
            return (
                connection.execute(queued).first() is not None
                or connection.execute(late).first() is not None
            )

    def expire(self, *, most_attempts: int = 3) -> list[str]:
        """See `port.JobStore.expire`."""
        with self._database.write() as connection:
            return leases.expire(connection, most_attempts, self._database.now(connection))

    def renew(self, claims: Sequence[Claim], lease: float) -> list[Claim]:
        """See `port.JobStore.renew`."""
        if not claims:
            return []
        with self._database.write() as connection:
            return leases.renew(connection, claims, lease, self._database.now(connection))

    def lost(self, claims: Sequence[Claim]) -> list[Claim]:
        """See `port.JobStore.lost`."""
        with self._database.read() as connection:
            return leases.lost(connection, claims)

    def report(self, claim: Claim, updates: Sequence[Update]) -> bool:
        """See `port.JobStore.report`."""
        with self._database.write() as connection:
            return leases.report(connection, claim, updates, self._database.now(connection))

    def complete(self, claim: Claim, artifacts: Sequence[Artifact]) -> bool:
        """See `port.JobStore.complete`."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            return leases.end(connection, claim, now, artifacts, None)

    def fail(self, claim: Claim, failure: Failure, *, artifacts: Sequence[Artifact] = ()) -> bool:
        """See `port.JobStore.fail`."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            return leases.end(connection, claim, now, artifacts, failure)

    def release(self, claim: Claim) -> bool:
        """See `port.JobStore.release`."""
        with self._database.write() as connection:
            return leases.release(connection, claim, self._database.now(connection))

    def events(
        self, tenant: str | None, job: str, *, after: int = 0, limit: int = 500
    ) -> list[Event]:
        """See `port.JobStore.events`."""
        if not is_id("job", job):
            return []
        query = (
            select(events)
            .join(jobs, jobs.c.number == events.c.job)
            # No job has so many events, and PostgreSQL refuses numbers beyond its integers.
            .where(*_named(tenant, job), events.c.id > max(0, min(after, 2**31 - 1)))
            .order_by(events.c.id)
            .limit(max(1, min(limit, MOST_ROWS)))
        )
        with self._database.read() as connection:
            return [event_of(row) for row in connection.execute(query)]

    def counts(self) -> dict[JobStatus, int]:
        """See `port.JobStore.counts`."""
        found: dict[JobStatus, int] = dict.fromkeys(
            ("queued", "running", "succeeded", "failed", "cancelled"), 0
        )
        query = select(jobs.c.status, func.count().label("jobs")).group_by(jobs.c.status)
        with self._database.read() as connection:
            found |= {row.status: row.jobs for row in connection.execute(query)}
        return found

    def purge(self, ended_before: float) -> list[str]:
        """See `port.JobStore.purge`."""
        purged: list[str] = []
        while more := self._purge_some(ended_before):
            purged += more
        return purged

    def _purge_some(self, ended_before: float) -> list[str]:
        # Several dispatchers may do so at once: each takes the rows that no other holds.
        old = select(jobs.c.number, jobs.c.id).where(jobs.c.finished < ended_before)
        with self._database.write() as connection:
            rows = connection.execute(
                old.order_by(jobs.c.number).limit(MOST_ROWS).with_for_update(skip_locked=True)
            ).all()
            connection.execute(delete(jobs).where(jobs.c.number.in_([r.number for r in rows])))
            return [row.id for row in rows]


def _named(tenant: str | None, job: str) -> list[ColumnElement[bool]]:
    conditions: list[Any] = [jobs.c.id == job]
    if tenant is not None:
        conditions.append(jobs.c.tenant == tenant)
    return conditions
