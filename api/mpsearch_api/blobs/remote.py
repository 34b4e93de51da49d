"""Blobs on any file system that fsspec knows (s3, gs, az, memory …), with a local cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpsearch.errors import DependencyError, InputError, MpsearchError
from mpsearch_api.blobs.cache import BlobCache
from mpsearch_api.blobs.local import check_name
from mpsearch_api.blobs.parts import CHUNK_BYTES, Spool, missing, place_of
from mpsearch_api.blobs.port import Blob
from mpsearch_api.faults import MissingBlobError, UnavailableError

__all__ = ["RemoteBlobs"]

logger = logging.getLogger(__name__)

SENT_BYTES = 16 << 20
# What is read into memory at once when a file is sent; the packages' own defaults are several
# blocks of 50 MiB each.
SENDING: dict[str, dict[str, Any]] = {
    "s3": {"chunksize": SENT_BYTES, "max_concurrency": 2},
    "gs": {"chunksize": SENT_BYTES},
}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
HAVE_BUCKETS = {"s3", "gs"}


class RemoteBlobs:
    """Blobs under a URL; what passes through this machine is kept in a folder too.

    An object store shows an object once it is whole; where a file system shows parts, a part has
    the wrong hash, and storing the content again replaces it.

    Args:
        url: Of a folder, such as `s3://bucket/mpsearch`.
        cache: Local folder for content sent or fetched.
        cache_bytes: Most that is kept there, unless more is in use.
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int) -> None:
        self._remote = _Remote(url)
        self._cache = BlobCache(cache, cache_bytes)
        self.parts = RemoteParts(self._remote, cache / "incoming")

    def put(
        self, chunks: Iterable[bytes], *, most: int | None = None, sha256: str | None = None
    ) -> Blob:
        """See `port.BlobStore.put`; the hash, and so the name, is known only at the end."""
        return self._send(self._cache.put(chunks, most, sha256))

    def put_file(self, path: Path) -> Blob:
        """See `port.BlobStore.put_file`; the file stays where it is."""
        with path.open("rb") as file:
            return self.put(iter(lambda: file.read(CHUNK_BYTES), b""))

    def read(self, sha256: str) -> Iterator[bytes]:
        """See `port.BlobStore.read`."""
        path = self.local_path(sha256)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def local_path(self, sha256: str) -> Path:
        """See `port.BlobStore.local_path`."""
        name = check_name(sha256)
        try:
            return self._cache.path(name)
        except MissingBlobError:
            return self._fetch(name)

    def pinned(self, sha256: str, folder: Path) -> Path:
        """See `port.BlobStore.pinned`."""
        return self._cache.pinned(self.local_path(sha256), folder)

    def delete_orphans(self, referenced: Iterable[str], *, older_than: float) -> list[str]:
        """See `port.BlobStore.delete_orphans`; `older_than` must exceed the longest upload."""
        used = set(referenced)
        self._cache.blobs.delete_orphans(used, older_than=older_than)
        self._cache.evict()
        gone = []
        for path in self._remote.names("content"):
            name = path.rpartition("/")[2]
            if name not in used and self._remote.age(path) > older_than:
                self._remote.remove(path)
                gone.append(name)
        return gone

    def _send(self, blob: Blob) -> Blob:
        # Also when it is there already: the object is then young again, and whole.
        self._remote.send(self._cache.path(blob.sha256), _place(blob.sha256))
        return blob

    def _fetch(self, name: str) -> Path:
        try:
            return self._cache.restore(name, self._remote.chunks(_place(name)))
        except FileNotFoundError:
            raise MissingBlobError(f"there is no blob {name}") from None


class RemoteParts:
    """Pieces of unfinished files as objects of their own; see `parts.PartStore`.

    Args:
        remote: Where to.
        incoming: Local folder for spools.
    """

    def __init__(self, remote: _Remote, incoming: Path) -> None:
        self._remote = remote
        self._incoming = incoming

    def spool(self) -> Spool:
        """See `parts.PartStore.spool`."""
        return Spool(self._incoming)

    def keep(self, upload: str, spool: Spool) -> str:
        """See `parts.PartStore.keep`."""
        spool.seal()
        place = place_of(upload)
        self._remote.send(spool.path, f"parts/{place}")
        spool.discard()
        return place

    def read(self, place: str) -> Iterator[bytes]:
        """See `parts.PartStore.read`."""
        try:
            yield from self._remote.chunks(f"parts/{place}")
        except FileNotFoundError:
            raise missing(place) from None

    def remove(self, places: Iterable[str]) -> None:
        """See `parts.PartStore.remove`."""
        for place in places:
            self._remote.remove(self._remote.path(f"parts/{place}"))

    def old(self, seconds: float) -> list[str]:
        """See `parts.PartStore.old`."""
        found = self._remote.names("parts")
        return [path.rpartition("/")[2] for path in found if self._remote.age(path) > seconds]


class _Remote:
    """A folder elsewhere; errors are said in our words, FileNotFoundError excepted."""

    def __init__(self, url: str) -> None:
        self._files, self._root = _connect(url)
        known = self._files.protocol
        self._protocols = {known} if isinstance(known, str) else set(known)
        self._sending = next((how for name, how in SENDING.items() if name in self._protocols), {})

    def path(self, place: str) -> str:
        return f"{self._root}/{place}"

    def send(self, source: Path, place: str) -> None:
        path = self.path(place)
        with self._in_our_words("take"):
            try:
                if not self._protocols & HAVE_BUCKETS:
                    self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(source), path, **self._sending)
            except FileNotFoundError as error:
                raise self._no_folder() from error

    def chunks(self, place: str) -> Iterator[bytes]:
        with self._in_our_words("give"):
            try:
                with self._files.open(self.path(place), "rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        yield chunk
            except FileNotFoundError:
                if self._without_bucket():
                    raise self._no_folder() from None
                raise

    def names(self, folder: str) -> list[str]:
        with self._in_our_words("list"):
            try:
                return list(self._files.find(self.path(folder)))
            except FileNotFoundError:
                return []

    def age(self, path: str) -> float:
        """Seconds since it was stored; 0 when it is gone."""
        with self._in_our_words("list"):
            try:
                return float((datetime.now(UTC) - self._files.modified(path)).total_seconds())
            except FileNotFoundError:
                return 0.0

    def remove(self, path: str) -> None:
        with self._in_our_words("delete"):
            try:
                self._files.rm_file(path)
            except FileNotFoundError:
                return

    def _without_bucket(self) -> bool:
        bucket = self._root.partition("/")[0]
        return bool(self._protocols & HAVE_BUCKETS) and not self._files.exists(bucket)

    def _no_folder(self) -> UnavailableError:
        bucket = self._root.partition("/")[0]
        return UnavailableError(
            f"the blob store has no bucket or folder {bucket!r}; make it, or correct "
            "MPSEARCH_BLOB_URL"
        )

    @contextmanager
    def _in_our_words(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, MpsearchError):
            raise
        except PermissionError as error:
            raise UnavailableError(
                f"the blob store refuses to {verb} what was asked ({error}); its credentials, or "
                "what they allow, must be corrected"
            ) from error
        except Exception as error:
            # Packages for stores raise errors of their own kinds; built-in ones, other than
            # OSError, are faults of programs.
            if not isinstance(error, OSError) and type(error).__module__ == "builtins":
                raise
            raise UnavailableError(
                f"the blob store did not {verb} what was asked "
                f"({type(error).__name__}: {error}); try again shortly"
            ) from error


def _place(name: str) -> str:
    return f"content/{name[:2]}/{name}"


def _connect(url: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    try:
        # Other servers write there too: no listing of ours stays true.
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(url.partition(":")[0])
        advice = f"; run: pip install 'mpsearch[{extra}]'" if extra else ""
        raise DependencyError(f"blob_url {url!r}: {error}{advice}") from error
    except ValueError as error:
        raise InputError(f"blob_url {url!r} cannot be used: {error}") from error
    return files, root.rstrip("/")
