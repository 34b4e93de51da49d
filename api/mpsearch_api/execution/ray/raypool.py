"""An executor over a Ray cluster for a process that is connected to it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from mpsearch_api.execution.ray.flights import Flights, Landed, Needs
from mpsearch_api.execution.ray.packing import Packed
from mpsearch_api.execution.ray.pool import PackedPool, WorkersLostError

__all__ = ["RayPool"]

TURN = 0.02
"""Seconds of one wait for outcomes; calls sent meanwhile are seen in the next one."""


class RayPool(PackedPool):
    """Runs calls as tasks of the cluster that `ray.init` has connected this process to.

    A call is started again when its worker or its node dies. `mpsearch.profile(executor=RayPool())`
    spreads a profile over the cluster; mpsearch must be installed on every node.
    """

    def __init__(self, *, cpus: int = 1, gpus: int = 0, memory: int = 0, most: int = 64) -> None:
        """Start without calls.

        Args:
            cpus: Processors of each call.
            gpus: Devices of each call.
            memory: Bytes that Ray sets aside for each call.
            most: Calls given to the cluster at a time.
        """
        super().__init__()
        self._flights = Flights(Needs(cpus, gpus, memory), most)
        self._wanted = threading.Event()
        self._stopped = False
        threading.Thread(target=self._collect, name="outcomes", daemon=True).start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: Until all calls have ended.
            cancel_futures: Cancel the calls that have not ended.
        """
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._stopped = True
        self._wanted.set()

    def _collect(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            while self._flights.busy:
                for landed in self._flights.collect(TURN):
                    self._settle(landed.number, _outcome(landed))
            if self._stopped:
                return

    def _send(self, number: int, packed: Packed) -> None:
        for key, content in packed.new.items():
            self._flights.keep(key, content)
        self._flights.begin(number, packed.body, packed.keys)
        self._wanted.set()

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._flights.drop(key)

    def _withdraw(self, number: int) -> None:
        self._flights.withdraw(number)


def _outcome(landed: Landed) -> bytes | Exception:
    if landed.lost:
        return WorkersLostError(landed.lost)
    return MemoryError(landed.starved) if landed.starved else landed.outcome
