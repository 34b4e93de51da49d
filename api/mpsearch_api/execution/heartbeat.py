"""Renewing leases from a thread of its own, so that nothing slow lets one run out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from mpsearch_api.faults import UnavailableError
from mpsearch_api.store.port import Claim, JobStore

__all__ = ["Heartbeat"]

log = structlog.get_logger()

SILENCE = 60.0
"""Seconds without a turn of the dispatcher after which its leases are left to run out: it hangs."""


class Heartbeat:
    """Renews the leases of a dispatcher until it is stopped."""

    def __init__(
        self,
        jobs: JobStore,
        claims: Callable[[], Sequence[Claim]],
        *,
        lease: float,
        interval: float,
        tell: Callable[[], None],
    ) -> None:
        """Start the thread.

        Args:
            jobs: Where leases are kept.
            claims: Gives the claims held, from any thread.
            lease: Seconds that each renewal gives.
            interval: Seconds between renewals.
            tell: Called with every beat.
        """
        self._jobs = jobs
        self._claims = claims
        self._lease = lease
        self._interval = interval
        self._tell = tell
        self._turned = time.monotonic()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._lost: list[Claim] = []
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def turned(self) -> None:
        """Say that the dispatcher is not stuck."""
        self._turned = time.monotonic()

    def lost(self) -> list[Claim]:
        """Take the claims that were found lost since the last call."""
        with self._lock:
            found, self._lost = self._lost, []
        return found

    def stop(self) -> None:
        """Stop renewing."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            if time.monotonic() - self._turned > SILENCE:
                log.error("dispatcher_hangs", seconds=time.monotonic() - self._turned)
                continue
            try:
                self._beat()
            except Exception:
                # Whatever it is, the next beat may save the leases.
                log.exception("heartbeat_failed")

    def _beat(self) -> None:
        claims = self._claims()
        try:
            lost = self._jobs.renew(claims, self._lease) if claims else []
        except UnavailableError as error:
            log.warning("database_unavailable", doing="renew", error=str(error))
            lost = []
        with self._lock:
            self._lost += lost
        self._tell()
