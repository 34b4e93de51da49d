"""Bytes on their way into an upload: gathered to pieces, each counted once it is stored."""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select, update

from mpsearch_api.blobs.parts import PartStore, Spool
from mpsearch_api.faults import StateError
from mpsearch_api.store.database import Database
from mpsearch_api.store.tables import upload_parts, uploads

__all__ = ["Appending"]

# What an upload loses at most when the server is killed, and what one piece holds: bytes.
PIECE_BYTES = 16 * 2**20
# Pieces of one upload; those of a large file are larger, so that short ones leave room.
MOST_PIECES = 10_000


class Appending:
    """Bytes on their way into an upload.

    Args:
        database: Where the offset is kept.
        parts: Where the pieces go.
        upload: Id.
        offset: Where they begin.
        size: Of the whole file.
    """

    def __init__(
        self, database: Database, parts: PartStore, upload: str, offset: int, size: int
    ) -> None:
        self._database = database
        self._parts = parts
        self._upload = upload
        self._recorded = offset
        self._size = size
        self._piece = max(PIECE_BYTES, -(-size // (MOST_PIECES // 2)))
        self._spool: Spool | None = None
        self.offset = offset

    def __enter__(self) -> Appending:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Args:
            chunk: The next bytes.

        Raises:
            StateError: There are more than were announced; those before are kept. Or another
                request has sent bytes for this place meanwhile.
        """
        if self.offset + len(chunk) > self._size:
            raise StateError(f"upload {self._upload} was announced with {self._size} bytes")
        if self._spool is None:
            self._spool = self._parts.spool()
        self._spool.write(chunk)
        self.offset += len(chunk)
        if self._spool.size >= self._piece:
            self._keep()

    def close(self) -> None:
        """Keep what was written."""
        self._keep()

    def _keep(self) -> None:
        spool, self._spool = self._spool, None
        if spool is None:
            return
        try:
            if spool.size:
                self._count(self._parts.keep(self._upload, spool), spool)
        finally:
            spool.discard()

    def _count(self, place: str, spool: Spool) -> None:
        try:
            # Where the database goes away meanwhile, nobody knows whether the piece counts: it is
            # left, and cleared away later if it does not.
            with self._database.write() as connection:
                self._move(connection, place, spool)
        except StateError:
            self._parts.remove([place])
            raise
        self._recorded = self.offset

    def _move(self, connection: Connection, place: str, spool: Spool) -> None:
        changed = connection.execute(
            update(uploads)
            .where(uploads.c.id == self._upload, uploads.c.offset == self._recorded)
            .values(offset=self.offset, changed=self._database.now(connection))
        ).rowcount
        if not changed:
            raise StateError(
                f"upload {self._upload} was deleted, or another request has sent bytes at "
                f"{self._recorded} meanwhile; ask for its offset and go on"
            )
        count = select(func.count()).where(upload_parts.c.upload == self._upload)
        if connection.execute(count).scalar_one() >= MOST_PIECES:
            raise StateError(
                f"upload {self._upload} came in {MOST_PIECES} pieces; delete it, and send larger "
                "ones"
            )
        connection.execute(
            insert(upload_parts).values(
                upload=self._upload,
                offset=self._recorded,
                size=spool.size,
                sha256=spool.sha256,
                place=place,
            )
        )
