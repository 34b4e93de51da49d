"""Blobs as files of this machine: written aside, fsynced, then renamed to their hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpsearch.errors import DocumentError, InputError
from mpsearch_api.blobs.parts import CHUNK_BYTES, LocalParts, Spool, sync_folder
from mpsearch_api.blobs.port import Blob
from mpsearch_api.faults import MissingBlobError, TooLargeError

__all__ = ["LocalBlobs", "check_name", "damaged"]

NAME = re.compile(r"[0-9a-f]{64}")


def check_name(sha256: str) -> str:
    """Let only hashes through, so that no text of a user becomes part of a path.

    Args:
        sha256: What should be a hash in hex.

    Returns:
        It.

    Raises:
        MissingBlobError: It is none, so there is no blob of that name.
    """
    if NAME.fullmatch(sha256) is None:
        raise MissingBlobError(f"{sha256[:70]!r} is not the sha256 of a blob")
    return sha256


def damaged(name: str, found: str) -> DocumentError:
    """Say that a blob is not what its name says."""
    return DocumentError(
        f"blob {name} is damaged: its content has sha256 {found}; restore it from a backup, or "
        "upload it again"
    )


class LocalBlobs:
    """A folder of blobs: `content/ab/abcd…` and, on their way in, `incoming/…` and `parts/…`.

    Args:
        folder: Where; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._content = folder / "content"
        self._incoming = folder / "incoming"
        self._lock = folder / "lock"
        for part in (self._content, self._incoming):
            part.mkdir(parents=True, exist_ok=True)
        self.parts = LocalParts(folder / "parts", self._incoming)
        # Content that was hashed since this process began, by what tells a file's state.
        self._checked: set[tuple[int, ...]] = set()

    def put(
        self, chunks: Iterable[bytes], *, most: int | None = None, sha256: str | None = None
    ) -> Blob:
        """See `port.BlobStore.put`."""
        with self._received(chunks, most) as spool:
            if sha256 is not None and sha256 != spool.sha256:
                raise InputError(
                    f"the bytes received have sha256 {spool.sha256}, announced was {sha256}; send "
                    "them again"
                )
            self._publish(spool.path, spool.sha256)
            return Blob(spool.sha256, spool.size)

    def restore(self, name: str, chunks: Iterable[bytes]) -> None:
        """Store what comes from elsewhere under the name it has there.

        Args:
            name: Its sha256.
            chunks: The content.

        Raises:
            damaged: It has another hash; nothing is kept.
        """
        with self._received(chunks, None) as spool:
            if spool.sha256 != name:
                raise damaged(name, spool.sha256)
            self._publish(spool.path, name)

    @contextmanager
    def _received(self, chunks: Iterable[bytes], most: int | None) -> Iterator[Spool]:
        """Write bytes aside as they come; what is not published is removed."""
        spool = Spool(self._incoming)
        try:
            for chunk in chunks:
                if most is not None and spool.size + len(chunk) > most:
                    raise TooLargeError(f"more than {most} bytes; that is the most taken")
                spool.write(chunk)
            spool.seal()
            yield spool
        finally:
            spool.discard()

    def put_file(self, path: Path) -> Blob:
        """See `port.BlobStore.put_file`; the file stays where it is."""
        with path.open("rb") as file:
            return self.put(iter(lambda: file.read(CHUNK_BYTES), b""))

    def read(self, sha256: str) -> Iterator[bytes]:
        """See `port.BlobStore.read`."""
        path = self._existing(sha256)
        return self._chunks(path, sha256)

    def local_path(self, sha256: str) -> Path:
        """See `port.BlobStore.local_path`; hashed once per process and state of the file."""
        path = self._existing(sha256)
        found = path.stat()
        state = (int(sha256, 16), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if state not in self._checked:
            for _chunk in self._chunks(path, sha256):
                pass
            self._checked.add(state)
        return path

    def pinned(self, sha256: str, folder: Path) -> Path:  # noqa: ARG002 (nothing here is evicted)
        """See `port.BlobStore.pinned`; a blob that is referred to stays where it is."""
        return self.local_path(sha256)

    def delete_orphans(self, referenced: Iterable[str], *, older_than: float) -> list[str]:
        """See `port.BlobStore.delete_orphans`; also removes what writers left behind."""
        used = set(referenced)
        limit = time.time() - older_than
        old = [
            path
            for path in self._content.glob("*/*")
            if path.name not in used and _changed(path) < limit
        ]
        gone = [path.name for path in old if self._discard(path, limit)]
        for path in self._incoming.iterdir():
            if _changed(path) < limit:
                path.unlink(missing_ok=True)
        return gone

    def _discard(self, path: Path, limit: float) -> bool:
        """Delete a blob, unless somebody stored it again since we looked."""
        with self._locked(fcntl.LOCK_EX):
            if _changed(path) >= limit:
                return False
            path.unlink(missing_ok=True)
            return True

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Keep storing content again (shared) and deleting it (exclusive) apart."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _publish(self, partial: Path, name: str) -> None:
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        with self._locked(fcntl.LOCK_SH):
            # Also when it is there already: it is young again to a clean-up of orphans, and whole
            # if the disk had damaged it. Whoever reads the old file goes on reading that.
            partial.chmod(stat.S_IRUSR | stat.S_IRGRP)
            partial.rename(path)
        sync_folder(path.parent)
        sync_folder(self._content)

    def _chunks(self, path: Path, sha256: str) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != sha256:
            raise damaged(sha256, digest.hexdigest())

    def _existing(self, sha256: str) -> Path:
        path = self._path(check_name(sha256))
        if not path.is_file():
            raise MissingBlobError(f"there is no blob {sha256}")
        return path

    def _path(self, name: str) -> Path:
        return self._content / name[:2] / name


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
