"""Calls under way as tasks of a Ray cluster."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError

from mpsearch_api.execution.ray.shard import run_shard

__all__ = ["Flights", "Landed", "Needs"]

log = logging.getLogger(__name__)

ENDING = 10.0
"""Seconds that cancelled calls get to end; most take a tenth."""

AGAIN = 1.0
"""Seconds after which a call that has not ended is cancelled again."""

RETRIES = 3
"""Starts that a call gets after its first, when its worker or node dies."""


@dataclass(frozen=True)
class Needs:
    """What a task takes of a node while it runs.

    Attributes:
        cpus: Processors.
        gpus: Devices.
        memory: Bytes; Ray counts them and watches nothing.
    """

    cpus: int = 1
    gpus: int = 0
    memory: int = 0

    def options(self) -> dict[str, Any]:
        """Write them as options of a Ray task."""
        found: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return found | ({"memory": self.memory} if self.memory else {})


@dataclass(frozen=True)
class Landed:
    """A call that has ended.

    Attributes:
        number: Which.
        outcome: What `packing.run_packed` gave; empty when the call was lost.
        lost: Why its workers died, each time; or empty.
        starved: Likewise, where that was for want of memory.
    """

    number: int
    outcome: bytes = b""
    lost: str = ""
    starved: str = ""


class Flights:
    """Sends calls to the cluster, so many at a time, in the order they came.

    The cluster starts a call again when its worker or its node dies; what a call raises is its
    outcome and no reason to.
    """

    def __init__(self, needs: Needs, most: int, name: str = "shard") -> None:
        """Start without calls.

        Args:
            needs: Of each call.
            most: Calls given to the cluster at a time.
            name: What the cluster shows.
        """
        options = {"max_retries": RETRIES, "retry_exceptions": False, "name": name}
        self._task = ray.remote(run_shard).options(**options, **needs.options())
        self._most = most
        self._lock = threading.Lock()
        self._parcels: dict[str, Any] = {}
        self._waiting: deque[tuple[int, bytes, Sequence[str]]] = deque()
        self._running: dict[Any, int] = {}
        self._withdrawn: list[Any] = []

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self._running or self._waiting)

    def keep(self, key: str, content: bytes) -> None:
        """Put a parcel into the cluster's object store.

        Args:
            key: Its name.
            content: Its content.
        """
        self._parcels[key] = ray.put(content)

    def drop(self, key: str) -> None:
        """Let the cluster forget a parcel.

        Args:
            key: Its name.
        """
        self._parcels.pop(key, None)

    def begin(self, number: int, body: bytes, keys: Sequence[str]) -> None:
        """Have a call run.

        Args:
            number: Its number.
            body: The call.
            keys: Parcels it needs.
        """
        with self._lock:
            self._waiting.append((number, body, keys))
            self._launch()

    def withdraw(self, number: int) -> None:
        """End a call; it does not land.

        Args:
            number: Which.
        """
        with self._lock:
            self._waiting = deque(each for each in self._waiting if each[0] != number)
            found = [task for task, known in self._running.items() if known == number]
            for task in found:
                del self._running[task]
            self._withdrawn = _not_ended(self._withdrawn) + found
            self._launch()
        for task in found:
            ray.cancel(task, force=True)

    def newest(self) -> int:
        """Give the number of the call that came last of those under way."""
        with self._lock:
            return max([*self._running.values(), *(number for number, _, _ in self._waiting)])

    def collect(self, timeout: float) -> list[Landed]:
        """Wait for calls to end.

        Args:
            timeout: Seconds at most until the first does.

        Returns:
            Those that have.
        """
        with self._lock:
            tasks = list(self._running)
        if not tasks or not ray.wait(tasks, num_returns=1, timeout=timeout)[0]:
            return []
        done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        with self._lock:
            ended = [(self._running.pop(task), task) for task in done if task in self._running]
            self._launch()
        return [_landed(number, task) for number, task in ended]

    def close(self) -> None:
        """End every call, and wait until they have; one that never does is logged."""
        with self._lock:
            left = [*self._running, *self._withdrawn]
            self._waiting.clear()
            self._running.clear()
            self._withdrawn.clear()
            self._parcels.clear()
        until = time.monotonic() + ENDING
        while left and time.monotonic() < until:
            # Ray ignores a request while an earlier one for the same task is on its way.
            for task in left:
                ray.cancel(task, force=True)
            left = _not_ended(left, AGAIN)
        if left:
            log.warning("%d calls did not end within %.0f s of being cancelled", len(left), ENDING)

    def _launch(self) -> None:
        while self._waiting and len(self._running) < self._most:
            number, body, keys = self._waiting.popleft()
            # Inside a list, so that a worker which has a parcel already does not read it again.
            parcels = [(key, self._parcels[key]) for key in keys]
            self._running[self._task.remote(body, parcels)] = number


def _not_ended(tasks: list[Any], timeout: float = 0.0) -> list[Any]:
    """Wait for tasks, whose outcomes nobody wants, and give those that have not ended."""
    if not tasks:
        return []
    _, left = ray.wait(tasks, num_returns=len(tasks), timeout=timeout, fetch_local=False)
    found: list[Any] = left
    return found


def _landed(number: int, task: Any) -> Landed:  # noqa: ANN401 - an ObjectRef
    starts = f"a part of the job was started {RETRIES + 1} times"
    try:
        return Landed(number, ray.get(task, timeout=60.0))
    except OutOfMemoryError as error:
        said = f"{starts}, and each time its node ran out of memory: {_short(error)}"
        return Landed(number, starved=said)
    except RayTaskError as error:
        return Landed(number, lost=f"workers of the cluster cannot run this job: {_short(error)}")
    except (RayError, GetTimeoutError) as error:
        return Landed(number, lost=f"{starts}, and each time its worker died: {_short(error)}")


def _short(error: Exception) -> str:
    """Give the last line of what Ray says, which has the reason; before it there are traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
