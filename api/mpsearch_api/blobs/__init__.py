"""Uploads and results: bytes stored under the name of their own hash."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mpsearch_api.blobs.port import BlobStore
    from mpsearch_api.settings import Settings

__all__ = ["open_blobs"]


def open_blobs(settings: Settings) -> BlobStore:
    """Open the blob store that the settings name.

    Args:
        settings: Of the service.

    Returns:
        The blob store.
    """
    from mpsearch_api.blobs.local import LocalBlobs
    from mpsearch_api.blobs.remote import RemoteBlobs

    url = settings.blob_url
    if url is None:
        return LocalBlobs(settings.data_dir / "blobs")
    if url.startswith("file://"):
        return LocalBlobs(Path(unquote(urlsplit(url).path)))
    return RemoteBlobs(url, settings.data_dir / "blob-cache", settings.blob_cache_bytes)
