"""Waiting for a job to change: one thread looks for all who wait, however many they are."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from mpsearch_api.faults import UnavailableError
from mpsearch_api.store.database import Database
from mpsearch_api.store.tables import jobs

__all__ = ["Changes"]

logger = logging.getLogger(__name__)

# Between looks at the database.
POLL_SECONDS = 0.1


@dataclass(eq=False)
class _Watch:
    job: str
    after: int
    wake: Callable[[], None]
    changed: bool = False


class Changes:
    """Tells when a job has an event later than one that is known, or is gone.

    Args:
        database: Where the jobs are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._watches: set[_Watch] = set()
        self._looking: threading.Thread | None = None
        self._awake = threading.Event()
        self._closed = False

    def wait(self, job: str, after: int, timeout: float) -> bool:
        """Block until a job has changed.

        Args:
            job: Id; that the caller may see it was checked before.
            after: Id of the last event known.
            timeout: Seconds.

        Returns:
            Whether there is a later event, or no such job any more; False: time ran out, or the
            service is closing.
        """
        happened = threading.Event()
        watch = _Watch(job, after, happened.set)
        self._add(watch)
        try:
            happened.wait(timeout)
        finally:
            self._remove(watch)
        return watch.changed

    async def wait_async(self, job: str, after: int, timeout: float) -> bool:
        """Wait until a job has changed, on an event loop; no thread is held meanwhile.

        Args:
            job: Id; that the caller may see it was checked before.
            after: Id of the last event known.
            timeout: Seconds.

        Returns:
            Whether there is a later event, or no such job any more; False: time ran out, or the
            service is closing.
        """
        loop = asyncio.get_running_loop()
        happened = asyncio.Event()

        def wake() -> None:
            # The loop may have been closed since: then nobody waits there any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(happened.set)

        watch = _Watch(job, after, wake)
        self._add(watch)
        try:
            async with asyncio.timeout(timeout):
                await happened.wait()
        except TimeoutError:
            return watch.changed
        finally:
            self._remove(watch)
        return watch.changed

    def close(self) -> None:
        """Let all who wait go, and end the thread."""
        with self._lock:
            self._closed = True
            waiting = list(self._watches)
            looking = self._looking
        for watch in waiting:
            watch.wake()
        self._awake.set()
        if looking is not None:
            looking.join()

    def _add(self, watch: _Watch) -> None:
        with self._lock:
            if self._closed:
                watch.wake()
                return
            self._watches.add(watch)
            if self._looking is None:
                self._looking = threading.Thread(
                    target=self._look, name="mpsearch-changes", daemon=True
                )
                self._looking.start()
        self._awake.set()

    def _remove(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _look(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                watches = list(self._watches)
            if not watches:
                self._awake.wait()
                self._awake.clear()
                continue
            try:
                self._check(watches)
            except UnavailableError as error:
                logger.warning("cannot look for changes: %s", error)
            self._awake.wait(POLL_SECONDS)
            self._awake.clear()

    def _check(self, watches: Sequence[_Watch]) -> None:
        names = {watch.job for watch in watches}
        query = select(jobs.c.id, jobs.c.last_event).where(jobs.c.id.in_(names))
        with self._database.read() as connection:
            last = {row.id: row.last_event for row in connection.execute(query)}
        for watch in watches:
            if last.get(watch.job, watch.after + 1) > watch.after:
                watch.changed = True
                watch.wake()
