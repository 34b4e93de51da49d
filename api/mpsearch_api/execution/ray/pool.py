"""What the executors over a cluster share: futures, and calls that are packed and sent."""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

from mpsearch.errors import DependencyError
from mpsearch_api.execution.ray.packing import Packed, Parcels, unpacked

__all__ = ["PackedPool", "WorkersLostError"]

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class WorkersLostError(DependencyError, BrokenExecutor):
    """The cluster, or the worker of one call again and again, is gone."""


@dataclass(frozen=True)
class _Call:
    """A call under way: who waits for it, what it needs, and how to make it here."""

    future: Future[Any]
    keys: Sequence[str]
    here: Callable[[], Any]


class PackedPool(Executor, ABC):
    """An executor that sends packed calls somewhere; all methods may be called from any thread."""

    def __init__(self) -> None:
        """Start without calls."""
        # Held while sending, so that a parcel is there before the first call that needs it.
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._parcels = Parcels()
        self._under_way: dict[int, _Call] = {}
        self._closed: Exception | None = None

    def submit(
        self,
        fn: Callable[Arguments, Answer],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Future[Answer]:
        """Have a function called on the cluster.

        Args:
            fn: Importable by name on every node.
            *args: Its arguments; `bytes` of 64 KiB and more are sent once.
            **kwargs: Its arguments by name.

        Returns:
            The future. Cancelling it also stops a call that has begun.

        Raises:
            RuntimeError: The executor is shut down, or its workers are gone.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed is not None:
                raise self._closed
            number = next(self._numbers)
            packed = self._parcels.pack(fn, args, kwargs)
            self._send(number, packed)
            # An outcome that is here already waits for the lock.
            self._under_way[number] = _Call(future, packed.keys, partial(fn, *args, **kwargs))
        future.add_done_callback(lambda done: self._ended(number, done))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: Until all calls have ended.
            cancel_futures: Cancel the calls that have not ended.
        """
        with self._lock:
            self._closed = self._closed or RuntimeError("cannot submit after shutdown")
            futures = [call.future for call in self._under_way.values()]
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            wait_for(futures)

    def _settle(self, number: int, outcome: bytes | Exception) -> None:
        """Take the outcome of a call."""
        with self._lock:
            found = self._under_way.pop(number, None)
            if found is None:
                return  # cancelled
            self._drop(self._parcels.release(found.keys))
        future = found.future
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
            return
        try:
            future.set_result(unpacked(outcome))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the future
            future.set_exception(error)

    def _run_here(self, number: int) -> None:
        """Make a call in this thread, unless its outcome comes first from elsewhere."""
        with self._lock:
            call = self._under_way.get(number)
        if call is None:
            return
        value, error = None, None
        try:
            value = call.here()
        except Exception as raised:  # noqa: BLE001 - as in _settle
            error = raised
        with self._lock:
            if self._under_way.pop(number, None) is None:
                return
            self._withdraw(number)
            self._drop(self._parcels.release(call.keys))
        if not call.future.set_running_or_notify_cancel():
            return
        if error is None:
            call.future.set_result(value)
        else:
            call.future.set_exception(error)

    def _break(self, error: Exception) -> None:
        """Take no more calls, and have those under way fail."""
        with self._lock:
            self._closed = error
            numbers = list(self._under_way)
        for number in numbers:
            self._settle(number, error)

    def _ended(self, number: int, done: Future[Any]) -> None:
        if not done.cancelled():
            return
        with self._lock:
            found = self._under_way.pop(number, None)
            if found is None:
                return  # its outcome is being looked at this moment
            self._withdraw(number)
            self._drop(self._parcels.release(found.keys))
        # Those who wait for the future learn of it only by this.
        done.set_running_or_notify_cancel()

    @abstractmethod
    def _send(self, number: int, packed: Packed) -> None:
        """Have a call begin; the lock is held."""

    @abstractmethod
    def _drop(self, keys: Iterable[str]) -> None:
        """Forget parcels; the lock is held."""

    @abstractmethod
    def _withdraw(self, number: int) -> None:
        """End a call whose outcome is of no use any more; the lock is held."""
