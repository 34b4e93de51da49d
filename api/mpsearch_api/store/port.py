"""What the service asks of its job store; every backend passes `store.contract`.

The jobs table is the only source of truth. A dispatcher claims a job with a lease and an attempt
number that grows with every claim; each later write carries the attempt and is refused when the job
has moved on (fencing, Gray and Cheriton 1989 for leases), so a worker that wakes up late changes
nothing.

```text
            submit            claim                complete
(nothing) ----------> queued ---------> running ------------> succeeded
                        ^                 |  fail
                        |                 +-----------------> failed
                        |  lease ran out, |
                        +--- release -----+     cancel, from queued or running: cancelled
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mpsearch.schemas.jobs import (
    Artifact,
    Event,
    Failure,
    Job,
    JobRequest,
    JobStatus,
    Page,
    Stage,
)

__all__ = ["Claim", "JobStore", "Update"]


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job, for as long as its lease is renewed.

    Attributes:
        job: Id of the job.
        tenant: Whose job it is.
        attempt: Fencing number: 1 for the first start.
        worker: Who holds it.
        request: What to run.
    """

    job: str
    tenant: str
    attempt: int
    worker: str
    request: JobRequest


@dataclass(frozen=True)
class Update:
    """What a running job has to tell.

    Attributes:
        kind: `progress` moves the job's stage and share; `partial` carries figures known early;
            `message` is for people.
        stage: Stage it is about.
        progress: Share of the stage done, in [0, 1].
        message: What is being done.
        eta_seconds: Until the stage ends, or None.
        cached: Whether the stage was answered from earlier work.
        data: Figures.
    """

    kind: Literal["progress", "partial", "message"]
    stage: Stage
    progress: float | None = None
    message: str = ""
    eta_seconds: float | None = None
    cached: bool = False
    data: dict[str, str | int | float | bool | None] = field(default_factory=dict)


class JobStore(Protocol):
    """Jobs, their leases, events and artifacts. All calls are safe from several processes.

    A `tenant` of None is the administrator's view: every tenant's jobs.
    """

    def submit(
        self,
        tenant: str,
        request: JobRequest,
        *,
        idempotency_key: str | None = None,
        most_open: int | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job; durable when this returns.

        Args:
            tenant: Whose job it is.
            request: What to run.
            idempotency_key: With the key and request of an earlier call, that job is returned.
            most_open: Refuse when the tenant has so many jobs queued or running.

        Returns:
            The job, and whether it is new.

        Raises:
            IdempotencyError: The key was used with another request.
            QuotaError: `most_open` is reached.
        """
        ...

    def get(self, tenant: str | None, job: str) -> Job | None:
        """Read a job; None when there is none, or it is another tenant's."""
        ...

    def page(
        self,
        tenant: str | None,
        *,
        status: JobStatus | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Job]:
        """List jobs, newest first.

        Args:
            tenant: Whose.
            status: Only those.
            cursor: `next` of the page before; new jobs do not shift what follows it.
            limit: At most so many.

        Returns:
            The page.

        Raises:
            InputError: The cursor is none of ours.
        """
        ...

    def cancel(self, tenant: str | None, job: str) -> Job | None:
        """End a job that has not ended; from then on no attempt can complete it.

        Args:
            tenant: Whose.
            job: Id.

        Returns:
            The job as it now stands (unchanged if it had ended), None when there is none.
        """
        ...

    def delete(self, tenant: str | None, job: str) -> bool:
        """Remove an ended job, with its events and artifact records.

        Args:
            tenant: Whose.
            job: Id.

        Returns:
            Whether there was one.

        Raises:
            StateError: It has not ended; cancel it first.
        """
        ...

    def claim(self, worker: str, lease: float, *, most_attempts: int = 3) -> Claim | None:
        """Take the oldest queued job, tenants taking turns.

        Jobs whose lease ran out are queued again first, or failed as `worker_died` after
        `most_attempts`; see `expire`.

        Args:
            worker: Who takes it.
            lease: Seconds until it must be renewed.
            most_attempts: Starts a job gets.

        Returns:
            The claim, or None when nothing is queued.
        """
        ...

    def expire(self, *, most_attempts: int = 3) -> list[str]:
        """Queue again, or fail, every running job whose lease ran out.

        Args:
            most_attempts: Starts a job gets.

        Returns:
            Ids of those jobs.
        """
        ...

    def renew(self, claims: Sequence[Claim], lease: float) -> list[Claim]:
        """Extend leases.

        Args:
            claims: What the caller holds.
            lease: Seconds from now.

        Returns:
            The claims that are lost: expired and taken over, cancelled, or deleted.
        """
        ...

    def lost(self, claims: Sequence[Claim]) -> list[Claim]:
        """Tell which claims no longer hold, without extending any; cheap enough to ask often."""
        ...

    def report(self, claim: Claim, updates: Sequence[Update]) -> bool:
        """Append events and move the job's progress.

        Args:
            claim: Under which claim.
            updates: What happened, in order.

        Returns:
            Whether the claim still held; nothing was written otherwise.
        """
        ...

    def complete(self, claim: Claim, artifacts: Sequence[Artifact]) -> bool:
        """End the job as succeeded and publish its artifacts, in one transaction.

        Args:
            claim: Under which claim.
            artifacts: Files whose content is in the blob store already.

        Returns:
            Whether the claim still held; nothing was published otherwise.
        """
        ...

    def fail(self, claim: Claim, failure: Failure, *, artifacts: Sequence[Artifact] = ()) -> bool:
        """End the job as failed.

        Args:
            claim: Under which claim.
            failure: Why.
            artifacts: What it left, such as its log.

        Returns:
            Whether the claim still held.
        """
        ...

    def release(self, claim: Claim) -> bool:
        """Queue the job again, as a graceful shutdown does; the attempt does not count.

        Args:
            claim: Under which claim.

        Returns:
            Whether the claim still held.
        """
        ...

    def events(
        self, tenant: str | None, job: str, *, after: int = 0, limit: int = 500
    ) -> list[Event]:
        """Read events in order.

        Args:
            tenant: Whose.
            job: Id.
            after: Only those with a greater id.
            limit: At most so many.

        Returns:
            The events; empty too when there is no such job.
        """
        ...

    def counts(self) -> dict[JobStatus, int]:
        """Count the jobs of all tenants by status."""
        ...

    def purge(self, ended_before: float) -> list[str]:
        """Delete jobs that ended long ago.

        Args:
            ended_before: Unix time, seconds.

        Returns:
            Their ids.
        """
        ...
