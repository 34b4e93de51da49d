"""Blobs on any file system that fsspec knows (s3, gs, az, memory …), with a local cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpsearch.errors import DependencyError, InputError
from mpsearch_api.blobs.local import CHUNK_BYTES, LocalBlobs, check_name, damaged
from mpsearch_api.blobs.port import Blob
from mpsearch_api.faults import MissingBlobError, UnavailableError

__all__ = ["RemoteBlobs"]


class RemoteBlobs:
    """Blobs under a URL; what passes through this machine is kept in a folder too.

    An object store shows an object once it is whole; where a file system shows parts, a part has
    the wrong hash, and storing the content again replaces it.

    Args:
        url: Of a folder, such as `s3://bucket/mpsearch`.
        cache: Local folder for content sent or fetched.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self._files, self._root = _connect(url)
        self._cache = LocalBlobs(cache)

    def put(
        self, chunks: Iterable[bytes], *, most: int | None = None, sha256: str | None = None
    ) -> Blob:
        """See `port.BlobStore.put`; the hash, and so the name, is known only at the end."""
        return self._send(self._cache.put(chunks, most=most, sha256=sha256))

    def put_file(self, path: Path) -> Blob:
        """See `port.BlobStore.put_file`; the file stays where it is."""
        return self._send(self._cache.put_file(path))

    def read(self, sha256: str) -> Iterator[bytes]:
        """See `port.BlobStore.read`."""
        path = self.local_path(sha256)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def local_path(self, sha256: str) -> Path:
        """See `port.BlobStore.local_path`."""
        try:
            return self._cache.local_path(sha256)
        except MissingBlobError:
            return self._fetch(check_name(sha256))

    def touch(self, sha256: str) -> bool:
        """See `port.BlobStore.touch`; object stores know no other way than sending it again."""
        try:
            path = self.local_path(sha256)
        except MissingBlobError:
            return False
        self._send(Blob(sha256, path.stat().st_size))
        return True

    def delete_orphans(self, referenced: Iterable[str], *, older_than: float) -> list[str]:
        """See `port.BlobStore.delete_orphans`; `older_than` must exceed the longest upload."""
        used = set(referenced)
        self._cache.delete_orphans(used, older_than=older_than)
        now = datetime.now(UTC)
        gone = []
        with _in_our_words("list"):
            for path in self._files.find(f"{self._root}/content"):
                name = path.rpartition("/")[2]
                age = (now - self._files.modified(path)).total_seconds()
                if name not in used and age > older_than:
                    self._files.rm_file(path)
                    gone.append(name)
        return gone

    def _send(self, blob: Blob) -> Blob:
        # Also when it is there already: the object is then young again, and whole.
        path = self._path(blob.sha256)
        with _in_our_words("take"):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(self._cache.local_path(blob.sha256)), path)
        return blob

    def _fetch(self, name: str) -> Path:
        def chunks() -> Iterator[bytes]:
            with self._files.open(self._path(name), "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

        try:
            with _in_our_words("give"):
                found = self._cache.put(chunks())
        except FileNotFoundError:
            raise MissingBlobError(f"there is no blob {name}") from None
        if found.sha256 != name:
            raise damaged(name, found.sha256)
        return self._cache.local_path(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/content/{name[:2]}/{name}"


def _connect(url: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DependencyError(f"blob_url {url!r}: {error}") from error
    except ValueError as error:
        raise InputError(f"blob_url {url!r} cannot be used: {error}") from error
    return files, root.rstrip("/")


@contextmanager
def _in_our_words(verb: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnavailableError(
            f"the blob store did not {verb} what was asked ({error}); try again shortly"
        ) from error
