"""The dispatcher: claims jobs, has them run, publishes what they made. A process of its own.

    python -m mpsearch_api.execution.dispatcher      settings by MPSEARCH_… variables

Nothing is lost with it: what it holds are leases, which run out, and folders, which the next one
clears away. SIGTERM ends its jobs and puts them back into the queue. Any number of dispatchers may
work on one database.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from mpsearch.errors import MpsearchError
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.execution.assigning import Assigner
from mpsearch_api.execution.attempts import Attempt, AttemptCounts
from mpsearch_api.execution.executors import make_executor
from mpsearch_api.execution.folders import RunFolder, cache_of, sweep
from mpsearch_api.execution.heartbeat import Heartbeat
from mpsearch_api.execution.local import Program
from mpsearch_api.execution.metrics import JobMetrics
from mpsearch_api.execution.outcome import failure_of
from mpsearch_api.execution.port import Assignment, Ended, Executor
from mpsearch_api.execution.processes import die_with_parent
from mpsearch_api.execution.publishing import Publisher
from mpsearch_api.execution.upkeep import tidy_up
from mpsearch_api.faults import UnavailableError
from mpsearch_api.logs import configure_logs
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.port import Claim, Update

__all__ = ["Dispatcher", "make_executor", "run_dispatcher"]

log = structlog.get_logger()

TURN = 0.05
"""Seconds between turns of the loop; the database is asked every `settings.poll`."""

UPKEEP = 60.0
METRICS = 5.0
MOST_UNTOLD = 1000
MOST_SAID = 500
SPARE_THREADS = 8
SOON = 0.2
"""Seconds for which the loop waits for what an attempt needs; files of this machine take less."""

AWAY_SECONDS = 5.0
"""Seconds until that is tried again, where the blob store or the database was away."""

PARENT = "MPSEARCH_DISPATCHER_PARENT"
"""Variable with the process id of the server that started this dispatcher, if one did."""

Answer = TypeVar("Answer")


class Dispatcher:
    """Runs the jobs of a store on an executor."""

    def __init__(
        self, settings: Settings, store: Store, blobs: BlobStore, executor: Executor
    ) -> None:
        """Clear away what dead dispatchers left, and start renewing leases.

        Args:
            settings: Of the service.
            store: The jobs.
            blobs: Where results go.
            executor: What runs them.
        """
        self.name = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._executor = executor
        self._assigner = Assigner(settings, store.catalog, blobs, fetch=not executor.elsewhere)
        swept = sweep(settings.data_dir)
        self._folder = RunFolder(settings.data_dir, self.name)
        self._metrics = JobMetrics(settings.data_dir, self.name)
        self._counts = AttemptCounts(self._metrics)
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._held: tuple[Claim, ...] = ()
        self._not_ready: str | None = "starting"
        self._publisher = Publisher(store.jobs, blobs, settings)
        # More than there are places: what a cancelled job waited for may be on its way yet.
        self._assigners = ThreadPoolExecutor(
            settings.workers + SPARE_THREADS, thread_name_prefix="assign"
        )
        self._upkeep = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._tidying: Future[None] | None = None
        self._asked = self._tidied = self._written = float("-inf")
        # Before the heartbeat, which writes the same file from its thread.
        self._folder.tell(self._not_ready, 0)
        self._heartbeat = Heartbeat(
            store.jobs,
            lambda: self._held,
            lease=settings.lease,
            interval=settings.heartbeat,
            tell=self._say,
        )
        log.info("dispatcher_started", dispatcher=self.name, swept=swept)

    def run(self, stopped: threading.Event) -> None:
        """Work until told to stop, then put everything back.

        Args:
            stopped: Set by whoever wants it to stop.
        """
        while not stopped.is_set():
            self.turn()
            stopped.wait(TURN)
        self.close()

    def turn(self) -> None:
        """Look after every attempt once; take new ones when there is room."""
        self._heartbeat.turned()
        for claim in self._heartbeat.lost():
            self._drop(claim)
        for attempt in list(self._attempts.values()):
            self._guarded(attempt, self._look_after)
        now = time.monotonic()
        if now - self._asked >= self._settings.poll:
            self._asked = now
            self._ask()
        if now - self._written >= METRICS:
            self._written = now
            self._metrics.write(len(self._attempts))
        if now - self._tidied >= UPKEEP and (self._tidying is None or self._tidying.done()):
            self._tidied = now
            self._tidying = self._upkeep.submit(self._tidy)

    def close(self) -> None:
        """End every job, put it back into the queue, and leave nothing behind."""
        log.info("dispatcher_stops", dispatcher=self.name, running=len(self._attempts))
        self._heartbeat.stop()
        self._assigners.shutdown(wait=False, cancel_futures=True)
        self._publisher.close()
        for attempt in list(self._attempts.values()):
            if attempt.run is not None:
                attempt.run.kill()
            # Refused where its end was published already.
            self._try("release", partial(self._store.jobs.release, attempt.claim))
        self._executor.close()
        self._upkeep.shutdown(wait=True, cancel_futures=True)
        self._try("retire", lambda: self._store.dispatchers.retire(self.name))
        self._metrics.close()
        self._folder.close()

    def _ask(self) -> None:
        """Ask the database what was cancelled, tell it what is new, take jobs."""
        running = [each.claim for each in self._attempts.values() if each.publishing is None]
        if running:
            lost = self._try("lost", lambda: self._store.jobs.lost(running))
            for claim in lost or ():
                self._drop(claim)
        for attempt in list(self._attempts.values()):
            self._guarded(attempt, self._tell)
        self._not_ready = self._executor.ready()
        if self._not_ready is None:
            while len(self._attempts) < self._settings.workers and self._take():
                pass

    def _take(self) -> bool:
        """Claim a job and start it; False when there was none."""
        settings = self._settings
        claim = self._try(
            "claim",
            lambda: self._store.jobs.claim(
                self.name, settings.lease, most_attempts=settings.most_attempts
            ),
        )
        if claim is None:
            return False
        log.info("job_started", job=claim.job, attempt=claim.attempt, dispatcher=self.name)
        attempt = Attempt(claim)
        self._hold(attempt)
        self._guarded(attempt, self._begin)
        return True

    def _begin(self, attempt: Attempt) -> None:
        """Collect what an attempt needs, then start it; again after a pause where that failed.

        Files may come from far away, and the loop must go on meanwhile. Where they, or the
        database, cannot be had now, the job waits: another dispatcher could have them no sooner.
        """
        now = time.monotonic()
        if attempt.assigning is None:
            if now - attempt.assigned < AWAY_SECONDS:
                return
            attempt.assigned = now
            attempt.assigning = self._assigners.submit(self._assign, attempt.claim)
            wait([attempt.assigning], SOON)
        if not attempt.assigning.done():
            return
        assigning, attempt.assigning = attempt.assigning, None
        try:
            attempt.run = self._executor.start(assigning.result())
        except UnavailableError as error:
            log.warning("job_waits", job=attempt.claim.job, error=str(error))
            said = f"waits: {error}"[:MOST_SAID]
            if said != attempt.waits:
                attempt.waits = said
                attempt.untold.append(Update("message", "load", message=said))
        except (MpsearchError, OSError) as error:
            self._publish(attempt, Ended(failure=failure_of(error)))

    def _assign(self, claim: Claim) -> Assignment:
        cache = cache_of(self._settings.data_dir, claim.tenant)
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self._folder_of(claim)
        return self._assigner.assign(claim, self._folder_of(claim, new=not folder.exists()), cache)

    def _guarded(self, attempt: Attempt, look: Callable[[Attempt], None]) -> None:
        """Let what nobody foresaw about one job fail that job, and not the others."""
        try:
            look(attempt)
        except Exception as error:  # noqa: BLE001 - it is told as the reason of the failure
            self._break_off(attempt, error)

    def _break_off(self, attempt: Attempt, error: Exception) -> None:
        log.error("attempt_broke_off", job=attempt.claim.job, exc_info=error)
        attempt.untold = []
        if attempt.publishing is None:
            self._publish(attempt, Ended(failure=failure_of(error)))
        else:
            self._forget(attempt)

    def _look_after(self, attempt: Attempt) -> None:
        if attempt.publishing is not None:
            published = self._publisher.look(attempt)
            if published is not None:
                if published:
                    self._counts.ended(attempt)
                self._forget(attempt)
            return
        if attempt.run is None:
            self._begin(attempt)
            return
        ended = attempt.run.ended()
        # Only now, since nothing comes after its last word.
        for update in attempt.run.updates():
            self._counts.told(attempt, update)
            attempt.untold.append(update)
        if ended is not None:
            self._publish(attempt, ended)

    def _publish(self, attempt: Attempt, ended: Ended) -> None:
        if ended.retry:
            self._let_go(attempt.claim)  # or a heartbeat would undo giving it up
        self._publisher.begin(attempt, ended)

    def _drop(self, claim: Claim) -> None:
        """End a run whose claim no longer holds: cancelled, or taken over."""
        attempt = self._attempts.get(_key(claim))
        if attempt is None or attempt.publishing is not None:
            return  # what is being published is refused by the database itself
        log.info("job_dropped", job=claim.job, attempt=claim.attempt)
        self._forget(attempt)

    def _forget(self, attempt: Attempt) -> None:
        if attempt.run is not None:
            attempt.run.kill()
        shutil.rmtree(self._folder_of(attempt.claim), ignore_errors=True)
        self._attempts.pop(_key(attempt.claim), None)
        self._let_go(attempt.claim)

    def _tell(self, attempt: Attempt) -> None:
        untold = attempt.untold
        if not untold or attempt.publishing is not None:
            return
        held = self._try("report", lambda: self._store.jobs.report(attempt.claim, untold))
        if held is not None:
            attempt.untold = []
        elif len(untold) > MOST_UNTOLD:
            attempt.untold = [each for each in untold if each.kind != "progress"][-MOST_UNTOLD:]

    def _try(self, doing: str, ask: Callable[[], Answer]) -> Answer | None:
        """Ask the database; None when it is away, in which case there is a next time."""
        try:
            return ask()
        except UnavailableError as error:
            log.warning("database_unavailable", doing=doing, error=str(error))
            return None

    def _say(self) -> None:
        """Tell how this dispatcher is: to servers of this machine, and to those of others."""
        reason, running = self._not_ready, len(self._held)
        self._folder.tell(reason, running)
        if self._store.database.postgres:  # whoever shares SQLite sees the folder
            self._try("tell", lambda: self._store.dispatchers.tell(self.name, reason, running))

    def _tidy(self) -> None:
        try:
            tidy_up(self._settings, self._store, self._blobs)
        except (MpsearchError, OSError) as error:
            log.warning("not_tidied_up", error=str(error))

    def _hold(self, attempt: Attempt) -> None:
        self._attempts[_key(attempt.claim)] = attempt
        self._held = (*self._held, attempt.claim)

    def _let_go(self, claim: Claim) -> None:
        self._held = tuple(each for each in self._held if _key(each) != _key(claim))

    def _folder_of(self, claim: Claim, *, new: bool = False) -> Path:
        return self._folder.attempt(claim.job, claim.attempt, new=new)


def _key(claim: Claim) -> tuple[str, int]:
    return claim.job, claim.attempt


def run_dispatcher(settings: Settings, program: Program | None = None) -> None:
    """Run a dispatcher until SIGTERM or SIGINT.

    Args:
        settings: Of the service.
        program: What local jobs run, instead of searches.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    store = _opened(settings, stopped)
    if store is None:
        return
    blobs = open_blobs(settings)
    executor = make_executor(settings, program)
    try:
        Dispatcher(settings, store, blobs, executor).run(stopped)
    finally:
        executor.close()
        store.close()


def _opened(settings: Settings, stopped: threading.Event) -> Store | None:
    """Open the store, waiting for its database; None when told to stop meanwhile."""
    while not stopped.is_set():
        try:
            return open_store(settings)
        except UnavailableError as error:
            log.warning("database_unavailable", doing="open", error=str(error))
            stopped.wait(1.0)
    return None


def main() -> None:
    """Run a dispatcher with the settings of the environment; it dies with its parent."""
    settings = Settings()
    configure_logs(settings)
    if os.environ.get(PARENT):
        die_with_parent(int(os.environ[PARENT]))
    try:
        run_dispatcher(settings)
    except MpsearchError as error:
        log.error("dispatcher_cannot_run", error=str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
