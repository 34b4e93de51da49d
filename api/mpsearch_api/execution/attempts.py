"""Attempts in a dispatcher's hands, and what is counted of them."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from mpsearch.schemas.jobs import Stage
from mpsearch_api.execution.metrics import JobMetrics
from mpsearch_api.execution.port import Assignment, Ended, Run
from mpsearch_api.store.port import Claim, Update

__all__ = ["Attempt", "AttemptCounts"]

log = structlog.get_logger()


@dataclass
class Attempt:
    """An attempt in this dispatcher's hands.

    Attributes:
        claim: The right to it.
        assigning: What it needs being collected, such as files from elsewhere.
        assigned: When that was last begun, on the monotonic clock.
        waits: Why it had to be begun again; said once.
        run: The run; None before it is started, or when it could not be.
        untold: Updates that the database has not taken yet.
        ended: How it ended.
        publishing: Its end on the way to the database.
        tried: When that was last tried, on the monotonic clock.
        stage: Stage under way, and since when.
        cached: Whether that stage was answered from earlier work.
    """

    claim: Claim
    assigning: Future[Assignment] | None = None
    assigned: float = float("-inf")
    waits: str = ""
    run: Run | None = None
    untold: list[Update] = field(default_factory=list)
    ended: Ended | None = None
    publishing: Future[bool] | None = None
    tried: float = 0.0
    stage: tuple[Stage, float] | None = None
    cached: bool = False


class AttemptCounts:
    """Counts stages and ends of attempts."""

    def __init__(self, metrics: JobMetrics) -> None:
        """Count into these.

        Args:
            metrics: Of the dispatcher.
        """
        self._metrics = metrics

    def told(self, attempt: Attempt, update: Update) -> None:
        """Measure stages by when they are first heard of and when the next one is.

        Args:
            attempt: Whose.
            update: What it told.
        """
        now = time.monotonic()
        self._metrics.told(update)
        if update.kind != "progress":
            return
        if attempt.stage is None or attempt.stage[0] != update.stage:
            self._close_stage(attempt, now)
            attempt.stage, attempt.cached = (update.stage, now), update.cached

    def ended(self, attempt: Attempt) -> None:
        """Count and log an end that the database has taken.

        Args:
            attempt: Which.
        """
        claim, ended = attempt.claim, attempt.ended
        assert ended is not None
        self._close_stage(attempt, time.monotonic())
        failure = ended.failure
        if ended.retry:
            self._metrics.died()
        else:
            kind = None if failure is None else failure.kind
            self._metrics.ended("succeeded" if failure is None else "failed", kind)
        log.info(
            "job_ended",
            job=claim.job,
            attempt=claim.attempt,
            status="succeeded" if failure is None else "failed",
            retry=ended.retry,
            why="" if failure is None else failure.message,
        )

    def _close_stage(self, attempt: Attempt, now: float) -> None:
        if attempt.stage is not None:
            stage, since = attempt.stage
            self._metrics.stage(stage, now - since, cached=attempt.cached)
