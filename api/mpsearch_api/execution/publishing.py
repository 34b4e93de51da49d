"""From how a run ended to the database: files become blobs, then one fenced write ends the job."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import structlog

from mpsearch.schemas.jobs import Artifact, Failure
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.execution.attempts import Attempt
from mpsearch_api.execution.outcome import failure_of
from mpsearch_api.execution.port import Ended
from mpsearch_api.faults import UnavailableError
from mpsearch_api.settings import Settings
from mpsearch_api.store.port import Claim, JobStore, Update

__all__ = ["Publisher"]

log = structlog.get_logger()


class Publisher:
    """Publishes ends in threads of its own, again and again while the database is away."""

    def __init__(self, jobs: JobStore, blobs: BlobStore, settings: Settings) -> None:
        """Start the threads.

        Args:
            jobs: Takes the ends.
            blobs: Takes the files.
            settings: Of the service.
        """
        self._jobs = jobs
        self._blobs = blobs
        self._settings = settings
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="publish")

    def begin(self, attempt: Attempt, ended: Ended) -> None:
        """Begin to publish how an attempt ended.

        Args:
            attempt: Which.
            ended: How.
        """
        attempt.ended = ended
        attempt.publishing = self._threads.submit(self._end, attempt, ended)

    def look(self, attempt: Attempt) -> bool | None:
        """Look at how publishing goes; it is tried again when the database was away.

        Args:
            attempt: One that `begin` was called for.

        Returns:
            Whether the database took the end; None while that is not settled.
        """
        claim, ended, publishing = attempt.claim, attempt.ended, attempt.publishing
        assert ended is not None
        assert publishing is not None
        if not publishing.done():
            return None
        error = publishing.exception()
        if isinstance(error, UnavailableError):
            log.warning("database_unavailable", doing="end", job=claim.job, error=str(error))
            if time.monotonic() - attempt.tried >= self._settings.poll:
                attempt.tried = time.monotonic()
                self.begin(attempt, ended)
            return None
        if error is not None and ended.produced:
            log.error("results_not_published", job=claim.job, exc_info=error)
            attempt.untold = []
            self.begin(attempt, Ended(failure=failure_of(error)))
            return None
        if error is None and publishing.result():
            return True
        log.warning("claim_lost", job=claim.job, attempt=claim.attempt, exc_info=error)
        return False

    def close(self) -> None:
        """Wait for what is under way."""
        self._threads.shutdown(wait=True)

    def _end(self, attempt: Attempt, ended: Ended) -> bool:
        """Put files into the blob store and end the job; False when the claim did not hold."""
        claim, jobs, failure = attempt.claim, self._jobs, ended.failure
        if ended.retry:
            return self._give_up(claim, failure)
        artifacts = []
        for file in ended.produced:
            blob = self._blobs.put_file(file.path)
            artifacts.append(
                Artifact(
                    name=file.name, media_type=file.media_type, size=blob.size, sha256=blob.sha256
                )
            )
        if attempt.untold and not jobs.report(claim, attempt.untold):
            return False
        attempt.untold = []
        if failure is None:
            return jobs.complete(claim, artifacts)
        return jobs.fail(claim, failure, artifacts=artifacts)

    def _give_up(self, claim: Claim, failure: Failure | None) -> bool:
        """Have the job tried again at once, or failed when workers died on it too often."""
        said = failure.message if failure is not None else "the worker died"
        held = self._jobs.report(claim, [Update("message", "load", message=said)])
        self._jobs.renew([claim], 0.0)
        self._jobs.expire(most_attempts=self._settings.most_attempts)
        return held
