"""What the routes work with: the stores, the solvers, and threads to wait in."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.faults import QuotaError
from mpsearch_api.http.catalogue import Catalogue
from mpsearch_api.http.metrics import Metrics
from mpsearch_api.http.readiness import Writable
from mpsearch_api.settings import Settings
from mpsearch_api.solving.pool import SolvePool
from mpsearch_api.store import Store

__all__ = ["Service"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

THREADS = 16
WRITERS = 64
CHECKS = 4
TRANSFERS = 64
TRANSFERS_OF_ONE = 16
WAITS_OF_ONE = 500


class Service:
    """Everything that requests share; one per application."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: BlobStore,
        *,
        host: str = "127.0.0.1",
        catalogue: Catalogue | None = None,
    ) -> None:
        """Put the parts together; `running` starts those that are processes.

        Args:
            settings: Of the service.
            store: Jobs, uploads and keys.
            blobs: Their bytes.
            host: Address that the server listens on.
            catalogue: Names that need torch; made by a process when not given.
        """
        self.settings = settings
        self.store = store
        self.blobs = blobs
        self.host = host
        self.metrics = Metrics(settings.data_dir)
        self.catalogue = catalogue or Catalogue(kept=settings.data_dir / "catalogue.json")
        self.solver = SolvePool(settings.solve_processes, seconds=settings.solve_seconds)
        self.writable = Writable()
        self._threads = anyio.CapacityLimiter(THREADS)
        self._writers = anyio.CapacityLimiter(WRITERS)
        self._checks = anyio.CapacityLimiter(CHECKS)
        self._transfers = anyio.CapacityLimiter(TRANSFERS)
        self._receiving: Counter[str] = Counter()
        self._waits: Counter[str] = Counter()
        self._closing: asyncio.Event | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start solvers and the catalogue; end them afterwards.

        Yields:
            Nothing.
        """
        self._closing = asyncio.Event()
        self.catalogue.start()
        try:
            async with self.solver:
                yield
        finally:
            await self.catalogue.stop()

    def close_streams(self) -> None:
        """End what would wait for long: event streams and long polls, so that a server can stop."""
        if self._closing is not None:
            self._closing.set()

    @property
    def closing(self) -> bool:
        """Whether the server is about to stop."""
        return self._closing is not None and self._closing.is_set()

    async def call(
        self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Call what reads a disk or a database, in a thread.

        Args:
            function: What to call.
            *args: Its arguments.
            **kwargs: Its named arguments.

        Returns:
            What it returned.
        """
        waits = functools.partial(function, *args, **kwargs)
        return await anyio.to_thread.run_sync(waits, limiter=self._threads)

    async def write(
        self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Call what waits for a commit, in other threads, so that no reader queues behind it.

        Args:
            function: What to call.
            *args: Its arguments.
            **kwargs: Its named arguments.

        Returns:
            What it returned.
        """
        waits = functools.partial(function, *args, **kwargs)
        return await anyio.to_thread.run_sync(waits, limiter=self._writers)

    async def check(
        self, function: Callable[Given, None], *args: Given.args, **kwargs: Given.kwargs
    ) -> None:
        """Call what computes for a while, in few threads, so that others go on meanwhile.

        Args:
            function: What to call.
            *args: Its arguments.
            **kwargs: Its named arguments.
        """
        checks = functools.partial(function, *args, **kwargs)
        await anyio.to_thread.run_sync(checks, limiter=self._checks)

    def receiving(self, tenant: str) -> AbstractContextManager[None]:
        """Hold one of the few places that a tenant has for bodies on their way in.

        Args:
            tenant: Whose.

        Returns:
            A context; entering it raises QuotaError when all places are taken, since slow senders
            must not take those of others.
        """
        return _place(
            self._receiving,
            tenant,
            TRANSFERS_OF_ONE,
            "files are being sent already; wait for one to end, or send parts to /v1/uploads",
        )

    def waiting(self, tenant: str) -> AbstractContextManager[None]:
        """Hold one of the places that a tenant has for event streams and long polls.

        Args:
            tenant: Whose.

        Returns:
            A context; entering it raises QuotaError when all places are taken.
        """
        return _place(
            self._waits, tenant, WAITS_OF_ONE, "streams and waits are open already; close some"
        )

    async def transfer(self, function: Callable[[], Result]) -> Result:
        """Call what reads a request's body, and so waits for the network, in other threads.

        Args:
            function: What to call.

        Returns:
            What it returned.
        """
        return await anyio.to_thread.run_sync(function, limiter=self._transfers)

    async def changed(self, job: str, after: int, seconds: float) -> bool:
        """Wait until something happens to a job, or the server is about to stop.

        Args:
            job: Id.
            after: Event that is known already.
            seconds: At most so long.

        Returns:
            Whether something happened.
        """
        assert self._closing is not None
        waits = [
            asyncio.ensure_future(self.store.changes.wait_async(job, after, seconds)),
            asyncio.ensure_future(self._closing.wait()),
        ]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].done() and bool(waits[0].result())
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


@contextmanager
def _place(taken: Counter[str], tenant: str, most: int, said: str) -> Iterator[None]:
    if taken[tenant] >= most:
        raise QuotaError(f"{most} {said}", retry_after=5.0)
    taken[tenant] += 1
    try:
        yield
    finally:
        taken[tenant] -= 1
        if not taken[tenant]:
            del taken[tenant]
