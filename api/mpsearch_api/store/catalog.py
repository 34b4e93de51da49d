"""Uploads on their way in, and the models, data sets and cost tables they became."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, delete, func, insert, or_, select, update

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Page
from mpsearch.schemas.uploads import Stored, StoredKind, Upload
from mpsearch_api.blobs.port import Blob, BlobStore
from mpsearch_api.faults import QuotaError, StateError
from mpsearch_api.store import cursor as cursors
from mpsearch_api.store.database import Database
from mpsearch_api.store.ids import is_id, new_id
from mpsearch_api.store.partial import PartFile, PartialFiles
from mpsearch_api.store.rows import moment
from mpsearch_api.store.submitting import hold_tenants
from mpsearch_api.store.tables import jobs, profiles, stored, uploads

__all__ = ["Appending", "Catalog"]

PREFIXES: dict[StoredKind, str] = {"model": "mdl", "dataset": "dat", "hardware": "hw"}
MOST_ROWS = 1000
# What an upload loses at most when the server is killed: bytes since the last time it was synced.
SYNC_BYTES = 16 * 2**20


class Catalog:
    """Uploads and stored objects; a `tenant` of None is the administrator's view.

    Args:
        database: Where.
        partials: Files of the unfinished uploads.
    """

    def __init__(self, database: Database, partials: PartialFiles) -> None:
        self._database = database
        self._partials = partials

    def create_upload(
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
            _check_quota(connection, tenant, size, most_bytes)
            name = new_id("upl", now)
            row = connection.execute(
                insert(uploads)
                .values(
                    id=name,
                    tenant=tenant,
                    size=size,
                    offset=0,
                    announced=None if sha256 is None else sha256.lower(),
                    created=now,
                    changed=now,
                )
                .returning(*uploads.c)
            ).one()
            self._partials.create(name)
        return _upload_of(row)

    def get_upload(self, tenant: str | None, upload: str) -> Upload | None:
        """Read an upload; None when there is none, or it is another tenant's."""
        row = self._upload(tenant, upload)
        return None if row is None else _upload_of(row)

    def appending(self, tenant: str | None, upload: str, offset: int) -> Appending:
        """Go on with an upload.

        Args:
            tenant: Whose.
            upload: Id.
            offset: Where the caller goes on, bytes.

        Returns:
            What takes the bytes; a context manager, whose end keeps all bytes written.

        Raises:
            StateError: There is no such upload, it goes on elsewhere than at `offset`, it is
                complete, or another request is writing it.
        """
        self._check_offset(self._upload(tenant, upload), upload, offset)
        file = self._partials.open(upload)
        try:
            # Again, now that nobody else can write: bytes that another request has added meanwhile
            # must not be cut off.
            row = self._check_offset(self._upload(tenant, upload), upload, offset)
            file.begin(offset)
        except BaseException:
            file.close()
            raise
        return Appending(self._database, file, upload, offset, row.size)

    @staticmethod
    def _check_offset(row: Row[Any] | None, upload: str, offset: int) -> Row[Any]:
        if row is None:
            raise StateError(f"there is no upload {upload[:60]!r}; create one")
        if row.blob is not None:
            raise StateError(f"upload {upload} is finished; create another")
        if row.offset != offset:
            raise StateError(f"upload {upload} goes on at {row.offset}, not at {offset}")
        return row

    def append_upload(
        self, tenant: str | None, upload: str, offset: int, chunks: Iterable[bytes]
    ) -> Upload:
        """Append bytes as they come; what came before an error of `chunks` is kept.

        Args:
            tenant: Whose.
            upload: Id.
            offset: Where they belong, bytes.
            chunks: The bytes.

        Returns:
            The upload after it.

        Raises:
            StateError: As `appending`, or the upload was deleted meanwhile.
        """
        with self.appending(tenant, upload, offset) as part:
            for chunk in chunks:
                part.write(chunk)
        found = self.get_upload(tenant, upload)
        if found is None:
            raise StateError(f"upload {upload} was deleted meanwhile")
        return found

    def finish_upload(self, tenant: str | None, upload: str, blobs: BlobStore) -> Blob:
        """Move the bytes of a complete upload into the blob store; again gives the same blob.

        Args:
            tenant: Whose.
            upload: Id.
            blobs: Where to.

        Returns:
            The blob.

        Raises:
            StateError: There is no such upload, or bytes are missing.
            InputError: The content is not what was announced; the upload is deleted.
        """
        found = self._finished(tenant, upload, blobs)
        if found is not None:
            return found
        try:
            file = self._partials.open(upload)
        except StateError:
            # Another request may have finished it since.
            found = self._finished(tenant, upload, blobs)
            if found is None:
                raise
            return found
        with file:
            found = self._finished(tenant, upload, blobs)
            if found is not None:
                return found
            return self._finish(upload, file, blobs)

    def _finished(self, tenant: str | None, upload: str, blobs: BlobStore) -> Blob | None:
        """Give the blob of a finished upload, None when bytes are to be stored yet."""
        row = self._upload(tenant, upload)
        if row is None:
            raise StateError(f"there is no upload {upload[:60]!r}; create one")
        if row.offset != row.size:
            raise StateError(
                f"upload {upload} has {row.offset} of {row.size} bytes; send the rest first"
            )
        if row.blob is None:
            return None
        # The upload may expire, and orphans be deleted, before the caller refers to the blob.
        if not blobs.touch(row.blob):
            raise StateError(f"the bytes of upload {upload} are gone; delete it and start again")
        return Blob(row.blob, row.size)

    def _finish(self, upload: str, file: PartFile, blobs: BlobStore) -> Blob:
        row = self._upload(None, upload)
        if row is None:
            raise StateError(f"upload {upload} was deleted meanwhile")
        file.begin(row.size)
        blob = blobs.put_file(file.path)
        if row.announced is not None and row.announced != blob.sha256:
            self.delete_upload(None, upload)
            raise InputError(
                f"the bytes received have sha256 {blob.sha256}, announced was {row.announced}; "
                "upload the file again"
            )
        with self._database.write() as connection:
            connection.execute(
                update(uploads).where(uploads.c.id == upload).values(blob=blob.sha256)
            )
        self._partials.remove(upload)
        return blob

    def delete_upload(self, tenant: str | None, upload: str) -> bool:
        """Forget an upload and its bytes.

        Args:
            tenant: Whose.
            upload: Id.

        Returns:
            Whether there was one.
        """
        if self._upload(tenant, upload) is None:
            return False
        with self._database.write() as connection:
            gone = connection.execute(delete(uploads).where(uploads.c.id == upload)).rowcount
        self._partials.remove(upload)
        return gone == 1

    def expire_uploads(self, older_than: float) -> list[str]:
        """Delete uploads that nothing was added to for long, and files that belong to none.

        Args:
            older_than: Seconds.

        Returns:
            Ids of those uploads.
        """
        with self._database.write() as connection:
            limit = self._database.now(connection) - older_than
            gone = list(
                connection.execute(
                    delete(uploads).where(uploads.c.changed < limit).returning(uploads.c.id)
                ).scalars()
            )
            known = set(connection.execute(select(uploads.c.id)).scalars())
        for name in self._partials.names():
            # A file is made before its row is committed: only old ones belong to none.
            if name in gone or (name not in known and self._partials.age(name) > older_than):
                self._partials.remove(name)
        return gone

    def add_stored(
        self,
        tenant: str,
        kind: StoredKind,
        name: str,
        format: str,  # noqa: A002 (the word of the schema)
        architecture: str | None,
        blob: Blob,
        *,
        most_bytes: int | None = None,
    ) -> Stored:
        """Record a stored object.

        Args:
            tenant: Whose.
            kind: What it is.
            name: Label given by the uploader.
            format: Of the file.
            architecture: For weights, what they belong to.
            blob: The content, which is stored already.
            most_bytes: Refuse when the tenant would hold more in all.

        Returns:
            The object.

        Raises:
            QuotaError: `most_bytes` would be passed.
        """
        labels = {"name": name, "format": format, "architecture": architecture}
        with self._database.write() as connection:
            now = self._database.now(connection)
            _check_quota(connection, tenant, blob.size, most_bytes, blob.sha256)
            row = connection.execute(
                insert(stored)
                .values(
                    id=new_id(PREFIXES[kind], now),
                    tenant=tenant,
                    kind=kind,
                    labels=json.dumps(labels),
                    size=blob.size,
                    sha256=blob.sha256,
                    created=now,
                )
                .returning(*stored.c)
            ).one()
        return _stored_of(row)

    def get_stored(self, tenant: str | None, name: str) -> Stored | None:
        """Read a stored object; None when there is none, or it is another tenant's."""
        if not any(is_id(prefix, name) for prefix in PREFIXES.values()):
            return None
        query = _owned(select(stored).where(stored.c.id == name), stored.c.tenant, tenant)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _stored_of(row)

    def page_stored(
        self,
        tenant: str | None,
        kind: StoredKind,
        *,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Stored]:
        """List stored objects of a kind, newest first.

        Args:
            tenant: Whose.
            kind: Which.
            cursor: `next` of the page before.
            limit: At most so many.

        Returns:
            The page.
        """
        listing = f"stored:{kind}"
        limit = max(1, min(limit, MOST_ROWS))
        query = _owned(select(stored).where(stored.c.kind == kind), stored.c.tenant, tenant)
        if cursor is not None:
            query = query.where(stored.c.number < cursors.decode(listing, cursor))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(stored.c.number.desc()).limit(limit + 1)).all()
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(
            items=[_stored_of(row) for row in rows],
            next=cursors.encode(listing, rows[-1].number) if more else None,
        )

    def delete_stored(self, tenant: str | None, name: str) -> bool:
        """Forget a stored object; its bytes go with the next clean-up of orphans.

        Args:
            tenant: Whose.
            name: Id.

        Returns:
            Whether there was one.
        """
        if self.get_stored(tenant, name) is None:
            return False
        with self._database.write() as connection:
            return connection.execute(delete(stored).where(stored.c.id == name)).rowcount == 1

    def bytes_stored(self, tenant: str) -> int:
        """Count what a tenant holds: stored objects, and other uploads at their announced size."""
        with self._database.read() as connection:
            return _bytes_held(connection, tenant)

    def referenced_blobs(self) -> set[str]:
        """Collect the names of all blobs that anything refers to.

        Returns:
            Their sha256.
        """
        with self._database.read() as connection:
            return set(_references(connection))

    def _upload(self, tenant: str | None, upload: str) -> Row[Any] | None:
        if not is_id("upl", upload):
            return None
        query = _owned(select(uploads).where(uploads.c.id == upload), uploads.c.tenant, tenant)
        with self._database.read() as connection:
            return connection.execute(query).one_or_none()


class Appending:
    """Bytes on their way into an upload; one at a time per upload.

    Args:
        database: Where the offset is kept.
        file: Where the bytes go.
        upload: Id.
        offset: Where they begin.
        size: Of the whole file.
    """

    def __init__(
        self, database: Database, file: PartFile, upload: str, offset: int, size: int
    ) -> None:
        self._database = database
        self._file = file
        self._upload = upload
        self._recorded = offset
        self._size = size
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
            StateError: There are more than were announced; those before are kept.
        """
        if self.offset + len(chunk) > self._size:
            raise StateError(f"upload {self._upload} was announced with {self._size} bytes")
        self._file.write(chunk)
        self.offset += len(chunk)
        if self.offset - self._recorded >= SYNC_BYTES:
            self._record()

    def close(self) -> None:
        """Keep what was written, and let others go on."""
        try:
            if self.offset > self._recorded:
                self._record()
        finally:
            self._file.close()

    def _record(self) -> None:
        # In this order: the database never counts a byte that a power cut could take back.
        self._file.sync()
        with self._database.write() as connection:
            changed = connection.execute(
                update(uploads)
                .where(uploads.c.id == self._upload, uploads.c.offset == self._recorded)
                .values(offset=self.offset, changed=self._database.now(connection))
            ).rowcount
        if changed != 1:
            raise StateError(f"upload {self._upload} was deleted or written by another meanwhile")
        self._recorded = self.offset


def _owned(query: Select[Any], column: Column[str], tenant: str | None) -> Select[Any]:
    return query if tenant is None else query.where(column == tenant)


def _bytes_held(connection: Connection, tenant: str, sha256: str | None = None) -> int:
    """Count bytes; an upload counts until it has become an object, such as one of this blob."""
    held = select(func.coalesce(func.sum(stored.c.size), 0)).where(stored.c.tenant == tenant)
    objects = select(stored.c.sha256).where(stored.c.tenant == tenant)
    coming = select(func.coalesce(func.sum(uploads.c.size), 0)).where(
        uploads.c.tenant == tenant,
        or_(uploads.c.blob.is_(None), uploads.c.blob.not_in(objects)),
    )
    if sha256 is not None:
        coming = coming.where(or_(uploads.c.blob.is_(None), uploads.c.blob != sha256))
    return sum(int(connection.execute(query).scalar_one()) for query in (held, coming))


def _check_quota(
    connection: Connection, tenant: str, size: int, most: int | None, sha256: str | None = None
) -> None:
    if most is None:
        return
    # Two uploads at once are then counted one after the other.
    hold_tenants(connection, [tenant])
    held = _bytes_held(connection, tenant, sha256)
    if held + size > most:
        raise QuotaError(
            f"{size} bytes more than the {held} held already pass the {most} allowed; delete "
            "models, data sets or unfinished uploads"
        )


def _references(connection: Connection) -> Iterator[str]:
    yield from connection.execute(select(stored.c.sha256)).scalars()
    yield from connection.execute(select(profiles.c.sha256)).scalars()
    yield from connection.execute(
        select(uploads.c.blob).where(uploads.c.blob.isnot(None))
    ).scalars()
    for text in connection.execute(
        select(jobs.c.artifacts).where(jobs.c.artifacts != "[]")
    ).scalars():
        yield from (artifact["sha256"] for artifact in json.loads(text))


def _upload_of(row: Row[Any]) -> Upload:
    return Upload(
        id=row.id,
        size=row.size,
        offset=row.offset,
        sha256=row.blob or row.announced,
        complete=row.offset == row.size,
        created=moment(row.created),
    )


def _stored_of(row: Row[Any]) -> Stored:
    return Stored(
        id=row.id,
        kind=row.kind,
        size=row.size,
        sha256=row.sha256,
        created=moment(row.created),
        **json.loads(row.labels),
    )
