"""The folders of an attempt on its node, and the files it needs there."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mpsearch.errors import DependencyError
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.execution.folders import RunFolder, cache_of, prune, sweep
from mpsearch_api.execution.port import Assignment
from mpsearch_api.execution.ray.orders import Order
from mpsearch_api.settings import Settings

__all__ = ["node_folder", "placed"]

CACHE_BYTES = 4 * 2**30


def node_folder() -> Path:
    """Name this node's folder for attempts: under the system's temporary folder, of this user."""
    return Path(tempfile.gettempdir()) / f"mpsearch-ray-{os.getuid()}"


@contextmanager
def placed(order: Order, root: Path | None = None) -> Iterator[Assignment]:
    """Give an attempt its folders and files on this node, for as long as it runs.

    Folders of attempts whose task was killed are removed by the next attempt on the node. Where
    the node sees the dispatcher's data folder, the tenant's cache there is used, so that a second
    attempt on another node resumes; otherwise the node has a cache of its own.

    Args:
        order: The attempt.
        root: Folder for attempts; default: the node's.

    Yields:
        The assignment, with paths of this node.

    Raises:
        DependencyError: The node cannot read the blob store, or its folder is another user's.
    """
    root = root or node_folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():  # anyone may make folders beside it
        raise DependencyError(f"{root} on {socket.gethostname()} belongs to another user")
    sweep(root)
    asked = order.assignment
    run = RunFolder(root, f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        folder = run.attempt(asked.claim.job, asked.claim.attempt, new=True)
        cache = _cache(asked, root)
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = {}
        if asked.contents:
            blobs = _blobs(order.blobs, root)
            files = {name: blobs.pinned(sha, folder) for name, sha in asked.contents.items()}
        hardware = asked.hardware
        if isinstance(hardware, Path):
            # The suffix tells the table's type; the name of a blob has none.
            link = folder / hardware.name
            link.symlink_to(files.pop(hardware.name).resolve())
            hardware = link
        yield replace(asked, folder=folder, cache=cache, files=files, hardware=hardware)
    finally:
        run.close()
        prune(root, CACHE_BYTES)


def _cache(asked: Assignment, root: Path) -> Path:
    # The name of the attempt's folder is drawn by its dispatcher: it is there by no accident.
    if asked.folder.is_dir() and os.access(asked.cache, os.W_OK):
        return asked.cache
    return cache_of(root, asked.claim.tenant)


def _blobs(url: str, root: Path) -> BlobStore:
    parts = urlsplit(url)
    if parts.scheme == "file" and not Path(unquote(parts.path)).is_dir():
        raise DependencyError(
            f"the node {socket.gethostname()} does not see the folder of uploads; mount the "
            "service's data folder there, or set MPSEARCH_BLOB_URL to storage that all nodes reach"
        )
    return open_blobs(Settings(data_dir=root, blob_url=url))
