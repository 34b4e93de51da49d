"""What the service asks of its blob store: bytes under the name of their own hash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mpsearch_api.blobs.parts import PartStore

__all__ = ["Blob", "BlobStore"]


@dataclass(frozen=True)
class Blob:
    """Stored bytes.

    Attributes:
        sha256: Of the content, in hex; its name.
        size: Bytes.
    """

    sha256: str
    size: int


class BlobStore(Protocol):
    """Content-addressed storage; what is there is complete, fsynced and never changes."""

    @property
    def parts(self) -> PartStore:
        """Pieces of what is on its way in."""
        ...

    def put(
        self, chunks: Iterable[bytes], *, most: int | None = None, sha256: str | None = None
    ) -> Blob:
        """Store bytes as they come, without holding them in memory.

        Args:
            chunks: The content.
            most: Largest size taken, bytes.
            sha256: What they must hash to, in hex; None: anything.

        Returns:
            What was stored.

        Raises:
            TooLargeError: There was more than `most`; nothing is kept.
            InputError: They hash to something else; nothing is kept.
        """
        ...

    def put_file(self, path: Path) -> Blob:
        """Store the content of a local file; the file may be moved away."""
        ...

    def read(self, sha256: str) -> Iterator[bytes]:
        """Read a blob in chunks, checking its hash at the end.

        Args:
            sha256: Its name.

        Returns:
            The content in order.

        Raises:
            MissingBlobError: There is none.
            DocumentError: The content is not what its name says.
        """
        ...

    def local_path(self, sha256: str) -> Path:
        """Give a read-only local file with the content, fetched first if it lies elsewhere.

        It is to be opened soon; see `pinned` for longer.

        Args:
            sha256: Its name.

        Returns:
            The path; its name says nothing that a user chose.

        Raises:
            MissingBlobError: There is none.
        """
        ...

    def pinned(self, sha256: str, folder: Path) -> Path:
        """Give a read-only local file that stays there as long as a folder does.

        Args:
            sha256: Its name.
            folder: Of whoever reads the file, at any time until the folder is removed.

        Returns:
            The path.

        Raises:
            MissingBlobError: There is none.
        """
        ...

    def delete_orphans(self, referenced: Iterable[str], *, older_than: float) -> list[str]:
        """Delete blobs that nothing refers to.

        Args:
            referenced: Names in use.
            older_than: Seconds; younger ones may be on their way to being referred to.

        Returns:
            The names deleted.
        """
        ...
