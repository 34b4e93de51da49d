"""What keeps the service from taking and running jobs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from mpsearch.errors import MpsearchError
from mpsearch_api.execution.folders import dispatchers
from mpsearch_api.faults import UnavailableError

if TYPE_CHECKING:
    from mpsearch_api.http.service import Service

__all__ = ["Writable", "find_faults"]

HEARD_LEASES = 3
WRITTEN_SECONDS = 1.0
"""How long it is believed that database and blob store can be written; anyone may ask."""


async def find_faults(service: Service) -> dict[str, str]:
    """Look at every part that a job needs.

    Args:
        service: The service.

    Returns:
        Part -> what is wrong with it; empty when jobs would be taken and run.
    """
    found = {
        **await service.writable.faults(service),
        "dispatcher": await service.call(_dispatcher, service),
        "catalogue": service.catalogue.reason(),
    }
    return {part: reason for part, reason in found.items() if reason is not None}


class Writable:
    """Whether database and blob store can be written, tried at most once in a while."""

    def __init__(self) -> None:
        """Begin without having tried."""
        self._lock = asyncio.Lock()
        self._tried = float("-inf")
        self._found: dict[str, str | None] = {}

    async def faults(self, service: Service) -> dict[str, str | None]:
        """Try to write, or say how that went a moment ago.

        Args:
            service: Where.

        Returns:
            Part -> what is wrong with it, or None.
        """
        async with self._lock:
            if time.monotonic() - self._tried >= WRITTEN_SECONDS:
                self._found = {
                    "database": await service.call(_database, service),
                    "blobs": await service.call(_blobs, service),
                }
                self._tried = time.monotonic()
            return self._found


def _database(service: Service) -> str | None:
    try:
        with service.store.database.write() as connection:
            connection.execute(text("SELECT 1"))
    except MpsearchError as error:
        return str(error)
    return None


def _blobs(service: Service) -> str | None:
    try:
        # The same bytes each time, so that looking leaves one small file at most.
        service.blobs.put([b"readiness\n"])
    except (MpsearchError, OSError) as error:
        return f"the blob store cannot be written: {error}"
    return None


def _dispatcher(service: Service) -> str | None:
    seconds = HEARD_LEASES * service.settings.lease
    reasons = _reasons_here(service, seconds)
    if None not in reasons:
        with contextlib.suppress(UnavailableError):  # a fault of its own
            reasons += _reasons_anywhere(service, seconds)
    if not reasons:
        return "no dispatcher has been heard of lately, here or elsewhere; jobs stay queued"
    return None if None in reasons else reasons[0]


def _reasons_here(service: Service, seconds: float) -> list[str | None]:
    """What keeps each dispatcher of this machine from running jobs; they also write a file."""
    oldest = time.time() - seconds
    found = dispatchers(service.settings.data_dir)
    return [state.executor for state in found if state.time >= oldest]


def _reasons_anywhere(service: Service, seconds: float) -> list[str | None]:
    return [each.reason for each in service.store.dispatchers.heard(seconds)]
