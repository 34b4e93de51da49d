"""Pieces of files on their way in, kept until the whole is there.

A piece is gathered in a file of this machine, and moved to where every server can read it only when
its bytes are to be counted; under a name that nobody else uses, since two servers may send pieces
for the same place, of which the database then takes one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from mpsearch_api.faults import MissingBlobError

__all__ = ["LocalParts", "PartStore", "Spool", "sync_folder"]

CHUNK_BYTES = 1 << 20


class Spool:
    """A piece that is being gathered, in a file of this machine.

    Args:
        folder: Where; a clean-up of what is old there removes what killed processes left.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / secrets.token_hex(16)
        self.size = 0
        self._digest = hashlib.sha256()
        self._file = self.path.open("xb")

    @property
    def sha256(self) -> str:
        """Of what was gathered, in hex."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Gather more bytes."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def seal(self) -> None:
        """Wait until all is on the disk; nothing is added any more."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Remove the file, if it is still there."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class PartStore(Protocol):
    """Pieces of unfinished files, readable by every server that shares the blob store."""

    def spool(self) -> Spool:
        """Begin to gather a piece."""
        ...

    def keep(self, upload: str, spool: Spool) -> str:
        """Store a piece; durable when this returns, and the spool is used up.

        Args:
            upload: Id of the upload it belongs to.
            spool: The piece.

        Returns:
            Its place, for `read` and `remove`.
        """
        ...

    def read(self, place: str) -> Iterator[bytes]:
        """Read a piece in chunks.

        Args:
            place: As `keep` returned it.

        Returns:
            Its bytes in order.

        Raises:
            MissingBlobError: It is not there.
        """
        ...

    def remove(self, places: Iterable[str]) -> None:
        """Delete pieces; those that are not there are passed over."""
        ...

    def old(self, seconds: float) -> list[str]:
        """List the pieces that were stored longer ago."""
        ...


class LocalParts:
    """Pieces as files of one folder.

    Args:
        folder: Of the pieces.
        incoming: Folder for spools, on the same file system.
    """

    def __init__(self, folder: Path, incoming: Path) -> None:
        self._folder = folder
        self._incoming = incoming
        folder.mkdir(parents=True, exist_ok=True)

    def spool(self) -> Spool:
        """See `PartStore.spool`."""
        return Spool(self._incoming)

    def keep(self, upload: str, spool: Spool) -> str:
        """See `PartStore.keep`."""
        spool.seal()
        place = place_of(upload)
        spool.path.rename(self._folder / place)
        sync_folder(self._folder)
        return place

    def read(self, place: str) -> Iterator[bytes]:
        """See `PartStore.read`."""
        try:
            with (self._folder / place).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError:
            raise missing(place) from None

    def remove(self, places: Iterable[str]) -> None:
        """See `PartStore.remove`."""
        for place in places:
            (self._folder / place).unlink(missing_ok=True)

    def old(self, seconds: float) -> list[str]:
        """See `PartStore.old`."""
        limit = time.time() - seconds
        found = []
        for entry in os.scandir(self._folder):
            try:
                if entry.stat().st_mtime < limit:
                    found.append(entry.name)
            except FileNotFoundError:
                continue
        return found


def place_of(upload: str) -> str:
    """Make a place for a piece that no other has."""
    return f"{upload}.{secrets.token_hex(12)}"


def missing(place: str) -> MissingBlobError:
    """Say that a piece is not there."""
    return MissingBlobError(
        f"a part of upload {place.partition('.')[0]} is no longer there; delete the upload and "
        "start again"
    )


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk.

    Args:
        folder: Which.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
