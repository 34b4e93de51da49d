"""What of a remote blob store lies on this machine: no more than is allowed, or is in use.

```text
FOLDER/content/ab/abcd…   the blobs, as `local.LocalBlobs` keeps them
FOLDER/used/abcd…         empty; its time tells when the blob was last asked for
```

A blob is in use, and never evicted, while a job's folder has a link to it (`pinned`) or a process
of this machine has asked for it lately; one that is open is read to its end in any case.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from mpsearch_api.blobs.local import LocalBlobs
from mpsearch_api.blobs.port import Blob

__all__ = ["BlobCache"]

IN_USE_SECONDS = 600.0
"""A path that was given out is opened within this time."""

LOOKED_SHARE = 0.05
"""Of the allowed bytes; what may come in before the folder is looked through again."""


class BlobCache:
    """Copies of remote blobs on this machine.

    Args:
        folder: Where; processes of one machine may share it.
        most_bytes: Evict what is not in use beyond so many.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.blobs = LocalBlobs(folder)
        self._content = folder / "content"
        self._used = folder / "used"
        self._used.mkdir(exist_ok=True)
        self._most = most_bytes
        self._lock = threading.Lock()
        self._unseen = float("inf")

    def put(self, chunks: Iterable[bytes], most: int | None, sha256: str | None) -> Blob:
        """Store what is to be sent; see `port.BlobStore.put`."""
        blob = self.blobs.put(chunks, most=most, sha256=sha256)
        self._came(blob.sha256, blob.size)
        return blob

    def restore(self, name: str, chunks: Iterable[bytes]) -> Path:
        """Store what was fetched; see `LocalBlobs.restore`.

        Args:
            name: Its sha256.
            chunks: The content.

        Returns:
            The local file.
        """
        self.blobs.restore(name, chunks)
        path = self.path(name)
        self._came(name, path.stat().st_size)
        return path

    def path(self, name: str) -> Path:
        """Give the local file of a blob, checked, and keep it for a while.

        Args:
            name: Its sha256.

        Returns:
            The file; to be opened within `IN_USE_SECONDS`.
        """
        # Before the look: an eviction between the two would otherwise take the file.
        self._mark(name)
        return self.blobs.local_path(name)

    def pinned(self, path: Path, folder: Path) -> Path:
        """Keep a local file for as long as a folder exists, by a link in there.

        Args:
            path: As `path` gave it.
            folder: Of whoever uses the file.

        Returns:
            The file in the folder.
        """
        place = folder / "blobs"
        place.mkdir(exist_ok=True)
        link = place / path.name
        try:
            if not link.exists():
                os.link(path, link)
        except OSError:
            # The folder lies on another disk, or on one without links.
            shutil.copyfile(path, link)
        return link

    def evict(self) -> int:
        """Delete what was not used for longest, until the rest is small enough or in use.

        Returns:
            Bytes deleted.
        """
        found = []
        total = 0
        for path in self._content.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                total += state.st_size
                found.append((self._last_use(path), state.st_size, path))
        deleted = 0
        for _used, size, path in sorted(found):
            if total - deleted <= self._most:
                break
            # Looked at again: it may have been linked or asked for meanwhile.
            if self._free(path):
                path.unlink(missing_ok=True)
                (self._used / path.name).unlink(missing_ok=True)
                deleted += size
        self._forget({path.name for _used, _size, path in found})
        return deleted

    def _forget(self, there: set[str]) -> None:
        """Drop the marks of blobs that are not there any more."""
        for mark in self._used.iterdir():
            if mark.name not in there and self._idle(mark):
                mark.unlink(missing_ok=True)

    def _came(self, name: str, size: int) -> None:
        self._mark(name)
        with self._lock:
            self._unseen += size
            if self._unseen <= LOOKED_SHARE * self._most:
                return
            self._unseen = 0
        self.evict()

    def _free(self, path: Path) -> bool:
        try:
            linked = path.stat().st_nlink > 1
        except FileNotFoundError:
            return False
        return not linked and self._idle(path)

    def _idle(self, path: Path) -> bool:
        return time.time() - self._last_use(path) > IN_USE_SECONDS

    def _mark(self, name: str) -> None:
        (self._used / name).touch()

    def _last_use(self, path: Path) -> float:
        with contextlib.suppress(FileNotFoundError):
            return (self._used / path.name).stat().st_mtime
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
        return 0.0
