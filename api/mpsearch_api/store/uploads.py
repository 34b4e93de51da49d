"""Uploads on their way in: any server that shares database and blob store takes the next part.

An upload's bytes are pieces in the blob store, its offset is one number in the database, and a
piece counts from the moment the database has moved the offset over it (compare and set). Of two
requests that send bytes for the same place, the first to get there wins; the other's piece is
removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from mpsearch.errors import InputError
from mpsearch.schemas.uploads import Upload
from mpsearch_api.blobs.parts import PartStore
from mpsearch_api.blobs.port import Blob, BlobStore
from mpsearch_api.faults import MissingBlobError, StateError
from mpsearch_api.store.appending import Appending
from mpsearch_api.store.assembling import assembled, pieces_of
from mpsearch_api.store.database import Database
from mpsearch_api.store.holdings import check_quota, owned
from mpsearch_api.store.ids import is_id, new_id
from mpsearch_api.store.rows import moment
from mpsearch_api.store.tables import upload_parts, uploads

__all__ = ["Uploads"]


class Uploads:
    """Unfinished files; a `tenant` of None is the administrator's view.

    Args:
        database: Where.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, tenant: str, size: int, sha256: str | None = None, *, most_bytes: int | None = None
    ) -> Upload:
        """Announce a file; its bytes count against the quota from now on.

        Args:
            tenant: Whose.
            size: Bytes.
            sha256: Of the content, if known; hex.
            most_bytes: Refuse when the tenant would hold more in all.

        Returns:
            The upload, at offset 0.

        Raises:
            QuotaError: `most_bytes` would be passed.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            check_quota(connection, tenant, size, most_bytes)
            row = connection.execute(
                insert(uploads)
                .values(
                    id=new_id("upl", now),
                    tenant=tenant,
                    size=size,
                    offset=0,
                    announced=None if sha256 is None else sha256.lower(),
                    created=now,
                    changed=now,
                )
                .returning(*uploads.c)
            ).one()
        return _upload_of(row)

    def get(self, tenant: str | None, upload: str) -> Upload | None:
        """Read an upload; None when there is none, or it is another tenant's."""
        row = self._row(tenant, upload)
        return None if row is None else _upload_of(row)

    def appending(
        self, tenant: str | None, upload: str, offset: int, parts: PartStore
    ) -> Appending:
        """Go on with an upload.

        Args:
            tenant: Whose.
            upload: Id.
            offset: Where the caller goes on, bytes.
            parts: Where pieces are kept.

        Returns:
            What takes the bytes; a context manager, whose end keeps all bytes written.

        Raises:
            StateError: There is no such upload, it goes on elsewhere than at `offset`, or it is
                complete.
        """
        row = self._row(tenant, upload)
        if row is None:
            raise StateError(f"there is no upload {upload[:60]!r}; create one")
        if row.blob is not None:
            raise StateError(f"upload {upload} is finished; create another")
        if row.offset != offset:
            raise StateError(f"upload {upload} goes on at {row.offset}, not at {offset}")
        return Appending(self._database, parts, upload, offset, row.size)

    def append(
        self,
        tenant: str | None,
        upload: str,
        offset: int,
        chunks: Iterable[bytes],
        parts: PartStore,
    ) -> Upload:
        """Append bytes as they come; what came before an error of `chunks` is kept.

        Args:
            tenant: Whose.
            upload: Id.
            offset: Where they belong, bytes.
            chunks: The bytes.
            parts: Where pieces are kept.

        Returns:
            The upload after it.

        Raises:
            StateError: As `appending`, or the upload was deleted meanwhile.
        """
        with self.appending(tenant, upload, offset, parts) as part:
            for chunk in chunks:
                part.write(chunk)
        found = self.get(tenant, upload)
        if found is None:
            raise StateError(f"upload {upload} was deleted meanwhile")
        return found

    def finish(self, tenant: str | None, upload: str, blobs: BlobStore) -> Blob:
        """Make a blob of a complete upload's pieces; again gives the same blob.

        Two requests may do so at once: they store the same content, and the pieces that one has
        removed the other needs no more.

        Args:
            tenant: Whose.
            upload: Id.
            blobs: Where to.

        Returns:
            The blob, which the upload refers to for as long as an upload is kept.

        Raises:
            StateError: There is no such upload, or bytes are missing.
            MissingBlobError: A piece is no longer there.
            InputError: The content is not what was announced; the upload is deleted.
        """
        found = self._finished(tenant, upload)
        if found is not None:
            return found
        try:
            with self._database.read() as connection:
                pieces = pieces_of(connection, upload)
            blob = assembled(pieces, blobs)
        except (MissingBlobError, StateError):
            found = self._finished(tenant, upload)
            if found is None:
                raise
            return found
        row = self._row(tenant, upload)
        if row is not None and row.announced is not None and row.announced != blob.sha256:
            self.delete(tenant, upload, blobs.parts)
            raise InputError(
                f"the bytes received have sha256 {blob.sha256}, announced was {row.announced}; "
                "upload the file again"
            )
        self._record(upload, blob, blobs.parts)
        return blob

    def _finished(self, tenant: str | None, upload: str) -> Blob | None:
        """Give the blob of a finished upload, None when it is to be made yet."""
        row = self._row(tenant, upload)
        if row is None:
            raise StateError(f"there is no upload {upload[:60]!r}; create one")
        if row.offset != row.size:
            raise StateError(
                f"upload {upload} has {row.offset} of {row.size} bytes; send the rest first"
            )
        if row.blob is None:
            return None
        with self._database.write() as connection:
            # Young again: it must not expire before the caller refers to its blob.
            kept = connection.execute(
                update(uploads)
                .where(uploads.c.id == upload)
                .values(changed=self._database.now(connection))
            ).rowcount
        if not kept:
            raise StateError(f"upload {upload} was deleted meanwhile")
        return Blob(row.blob, row.size)

    def _record(self, upload: str, blob: Blob, parts: PartStore) -> None:
        with self._database.write() as connection:
            changed = connection.execute(
                update(uploads)
                .where(uploads.c.id == upload)
                .values(blob=blob.sha256, changed=self._database.now(connection))
            ).rowcount
            places = _forget_parts(connection, [upload])
        parts.remove(places)
        if not changed:
            raise StateError(f"upload {upload} was deleted meanwhile")

    def delete(self, tenant: str | None, upload: str, parts: PartStore) -> bool:
        """Forget an upload and its bytes.

        Args:
            tenant: Whose.
            upload: Id.
            parts: Where its pieces are.

        Returns:
            Whether there was one.
        """
        if self._row(tenant, upload) is None:
            return False
        with self._database.write() as connection:
            # First the upload, then its pieces, as everywhere: or two could wait for each other.
            connection.execute(select(uploads.c.id).where(uploads.c.id == upload).with_for_update())
            places = _forget_parts(connection, [upload])
            gone = connection.execute(delete(uploads).where(uploads.c.id == upload)).rowcount
        parts.remove(places)
        return gone == 1

    def expire(self, older_than: float, parts: PartStore) -> list[str]:
        """Delete uploads that nothing was added to for long, and pieces that belong to none.

        Args:
            older_than: Seconds.
            parts: Where pieces are.

        Returns:
            Ids of those uploads.
        """
        with self._database.write() as connection:
            limit = self._database.now(connection) - older_than
            old = select(uploads.c.id).where(uploads.c.changed < limit).order_by(uploads.c.id)
            gone = list(connection.execute(old.with_for_update(skip_locked=True)).scalars())
            places = _forget_parts(connection, gone)
            connection.execute(delete(uploads).where(uploads.c.id.in_(gone)))
        parts.remove(places)
        # A piece is stored before it is counted: only old ones belong to none.
        strays = set(parts.old(older_than))
        with self._database.read() as connection:
            strays -= set(connection.execute(select(upload_parts.c.place)).scalars())
        parts.remove(sorted(strays))
        return gone

    def _row(self, tenant: str | None, upload: str) -> Row[Any] | None:
        if not is_id("upl", upload):
            return None
        query = owned(select(uploads).where(uploads.c.id == upload), uploads.c.tenant, tenant)
        with self._database.read() as connection:
            return connection.execute(query).one_or_none()


def _forget_parts(connection: Connection, names: list[str]) -> list[str]:
    """Delete the rows of pieces; gives their places, to be removed once this is committed."""
    return list(
        connection.execute(
            delete(upload_parts)
            .where(upload_parts.c.upload.in_(names))
            .returning(upload_parts.c.place)
        ).scalars()
    )


def _upload_of(row: Row[Any]) -> Upload:
    return Upload(
        id=row.id,
        size=row.size,
        offset=row.offset,
        sha256=row.blob or row.announced,
        complete=row.offset == row.size,
        created=moment(row.created),
    )
