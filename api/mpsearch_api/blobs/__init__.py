"""Uploads and results: bytes stored under the name of their own hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    return LocalBlobs(settings.data_dir / "blobs")
