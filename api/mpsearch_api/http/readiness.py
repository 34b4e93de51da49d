"""What keeps the service from taking and running jobs."""

from __future__ import annotations

import time

from sqlalchemy import text

from mpsearch.errors import MpsearchError
from mpsearch_api.execution.folders import dispatchers
from mpsearch_api.http.service import Service

__all__ = ["find_faults"]

HEARD_LEASES = 3


async def find_faults(service: Service) -> dict[str, str]:
    """Look at every part that a job needs.

    Args:
        service: The service.

    Returns:
        Part -> what is wrong with it; empty when jobs would be taken and run.
    """
    found = {
        "database": await service.call(_database, service),
        "blobs": await service.call(_blobs, service),
        "dispatcher": await service.call(_dispatcher, service),
        "catalogue": service.catalogue.reason(),
    }
    return {part: reason for part, reason in found.items() if reason is not None}


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
    settings = service.settings
    oldest = time.time() - HEARD_LEASES * settings.lease
    live = [state for state in dispatchers(settings.data_dir) if state.time >= oldest]
    if not live:
        return "no dispatcher of this machine has been heard of lately; jobs stay queued"
    reasons = [state.executor for state in live if state.executor is not None]
    return reasons[0] if len(reasons) == len(live) else None
