"""Files of unfinished uploads: appended to by one process at a time, cut back after a crash."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from mpsearch_api.faults import StateError

__all__ = ["PartFile", "PartialFiles"]


class PartFile:
    """An unfinished file, locked for as long as it is open.

    Args:
        path: Where it lies.
        descriptor: Open for writing, and locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._file = os.fdopen(descriptor, "wb", buffering=1 << 20)

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def begin(self, offset: int) -> None:
        """Go to where the next byte belongs, and drop the bytes after it, which nobody counted.

        Args:
            offset: Bytes that the catalog has on record, read while the file was locked.

        Raises:
            StateError: Bytes on record are not there.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size < offset:
            raise StateError(
                f"upload {self.path.name} lost bytes: {size} of {offset} are there; delete it and "
                "start again"
            )
        os.ftruncate(self._file.fileno(), offset)
        self._file.seek(offset)

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self._file.write(chunk)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others open it."""
        self._file.close()


class PartialFiles:
    """A folder of unfinished files, named by ids that the catalog made.

    Args:
        folder: The folder; servers that share a database must share it too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def create(self, name: str) -> None:
        """Make an empty file."""
        os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def open(self, name: str) -> PartFile:
        """Open a file to append; `PartFile.begin` says from where.

        Args:
            name: Which.

        Returns:
            The file; nobody else can open it until it is closed.

        Raises:
            StateError: Another request is writing it, or it is not there.
        """
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            raise StateError(
                f"the bytes of upload {name} are not on this server; delete it and start again"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StateError(
                f"another request is writing upload {name}; ask for its offset and go on"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        return PartFile(path, descriptor)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self._folder / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """List the files."""
        return [entry.name for entry in os.scandir(self._folder)]

    def age(self, name: str) -> float:
        """Tell how long ago a file was last written, in seconds; 0 when it is gone."""
        try:
            return time.time() - (self._folder / name).stat().st_mtime
        except FileNotFoundError:
            return 0.0
