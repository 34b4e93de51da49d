"""Opening a ZIP file whose table of contents was not looked at yet."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["open_member", "opened_zip"]

BYTES_PER_MEMBER = 200
"""What an entry of the table of contents may take on average: 46 and its name and times."""


class _BoundedFile(io.BufferedReader):
    """A file that refuses to be read in pieces beyond a limit, until that is lifted."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(io.FileIO(path))
        self.limit: int | None = limit
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual.

        Args:
            size: Number of bytes; None and -1 for all that follow.

        Returns:
            The bytes.

        Raises:
            BadZipFile: More is asked for than the limit.
        """
        if size is None or size < 0:
            size = max(0, self._size - self.tell())
        if self.limit is not None and size > self.limit:
            raise zipfile.BadZipFile(
                f"its table of contents is longer than the {self.limit:,} bytes allowed"
            )
        return super().read(size)


@contextmanager
def opened_zip(path: Path, members: int) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP file and read its table of contents, if that is not absurdly long.

    `zipfile.ZipFile` reads the whole table at once and makes some 500 bytes of every entry of 50,
    before its caller can count them.

    Args:
        path: The file.
        members: How many members it may have; more may be there, but not many times as many.

    Yields:
        The archive.
    """
    limit = 2**17 + BYTES_PER_MEMBER * members  # a comment of up to 2^16 bytes is read, too
    with _BoundedFile(path, limit) as file, zipfile.ZipFile(file) as archive:
        file.limit = None
        yield archive


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member that unpacks in pieces of the size asked for: read it with a size, always.

    The other ways to pack, bzip2 and LZMA, unpack as much as their input gives at once.

    Args:
        archive: The archive.
        member: One of its members.

    Returns:
        The file.

    Raises:
        BadZipFile: It is packed in another way, or encrypted.
    """
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise zipfile.BadZipFile("only stored and deflated members are read")
    if member.flag_bits & 1:
        raise zipfile.BadZipFile("encrypted members are not read")
    return archive.open(member)
