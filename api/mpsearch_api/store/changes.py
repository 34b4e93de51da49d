"""Waiting for a job to change: one thread looks for all who wait, however many they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from mpsearch_api.store.bells import Bell, make_bell
from mpsearch_api.store.database import Database
from mpsearch_api.store.tables import jobs

__all__ = ["Changes"]

logger = logging.getLogger(__name__)

# Jobs asked about in one query; far below what either database takes.
MOST_NAMES = 1000


@dataclass(eq=False)
class _Watch:
    job: str
    after: int
    wake: Callable[[], None]
    looked: bool = False
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
        self._thread: threading.Thread | None = None
        self._closed = False
        # Written to when somebody begins to wait, so that the thread looks at once.
        self._poked, self._poke = socket.socketpair()
        self._poked.setblocking(False)
        self._poke.setblocking(False)

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
            # The loop may be closed by now: then nobody waits there any more.
            with contextlib.suppress(RuntimeError):
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
            if self._closed:
                return
            self._closed = True
            waiting = list(self._watches)
            thread = self._thread
        for watch in waiting:
            watch.wake()
        self._nudge()
        if thread is not None:
            thread.join()
        self._poked.close()
        self._poke.close()

    def _add(self, watch: _Watch) -> None:
        with self._lock:
            if self._closed:
                watch.wake()
                return
            self._watches.add(watch)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="mpsearch-changes", daemon=True
                )
                self._thread.start()
        self._nudge()

    def _remove(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _nudge(self) -> None:
        # Full: it was poked a thousand times and has not looked yet. Closed: nobody will.
        with contextlib.suppress(BlockingIOError, OSError):
            self._poke.send(b".")

    def _run(self) -> None:
        bell: Bell | None = None
        while not self._closed:
            try:
                if bell is None:
                    bell = make_bell(self._database)
                self._look(bell)
            except Exception:
                # Whatever it was, those who wait wait on; their own time limits hold.
                logger.exception("cannot look for changes of jobs; trying again")
                time.sleep(1.0)
        if bell is not None:
            bell.close()

    def _look(self, bell: Bell) -> None:
        with self._lock:
            watches = list(self._watches)
        heard = bool(watches) and bell.heard()
        asked = watches if heard else [watch for watch in watches if not watch.looked]
        self._check(asked)
        self._sleep(bell, bell.interval if watches else None)

    def _sleep(self, bell: Bell, seconds: float | None) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._poked, selectors.EVENT_READ)
            descriptor = bell.fileno()
            if descriptor is not None:
                selector.register(descriptor, selectors.EVENT_READ)
            selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            while self._poked.recv(4096):
                continue

    def _check(self, watches: Sequence[_Watch]) -> None:
        names = sorted({watch.job for watch in watches})
        last: dict[str, int] = {}
        for start in range(0, len(names), MOST_NAMES):
            some = names[start : start + MOST_NAMES]
            query = select(jobs.c.id, jobs.c.last_event).where(jobs.c.id.in_(some))
            with self._database.read() as connection:
                last |= {row.id: row.last_event for row in connection.execute(query)}
        for watch in watches:
            watch.looked = True
            if last.get(watch.job, watch.after + 1) > watch.after:
                watch.changed = True
                watch.wake()
