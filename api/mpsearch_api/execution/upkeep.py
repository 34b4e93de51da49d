"""What has to be cleared away now and then."""

from __future__ import annotations

import time

import structlog

from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.execution.folders import prune, sweep
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store

__all__ = ["tidy_up"]

log = structlog.get_logger()

CACHE_BYTES = 4 * 2**30
ORPHAN_AGE = 3600.0
"""Seconds that bytes may lie in the blob store before something refers to them."""


def tidy_up(settings: Settings, store: Store, blobs: BlobStore) -> None:
    """Delete old jobs, unfinished uploads, bytes nobody refers to, and old cached work.

    Several dispatchers may do so at once.

    Args:
        settings: With how long things are kept.
        store: Jobs and objects.
        blobs: Their bytes.
    """
    sweep(settings.data_dir)
    jobs = []
    if settings.retention_days is not None:
        jobs = store.jobs.purge(time.time() - settings.retention_days * 86_400)
    uploads = store.uploads.expire(settings.upload_hours * 3600, blobs.parts)
    orphans = blobs.delete_orphans(store.catalog.referenced_blobs(), older_than=ORPHAN_AGE)
    cached = prune(settings.data_dir, CACHE_BYTES)
    if jobs or uploads or orphans or cached:
        log.info(
            "tidied_up",
            jobs=len(jobs),
            uploads=len(uploads),
            blobs=len(orphans),
            cache_bytes=cached,
        )
