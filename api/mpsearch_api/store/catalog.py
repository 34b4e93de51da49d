"""Models, data sets and cost tables that jobs may name, and which bytes anything refers to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from mpsearch.schemas.jobs import Page
from mpsearch.schemas.uploads import Stored, StoredKind
from mpsearch_api.blobs.port import Blob
from mpsearch_api.store import cursor as cursors
from mpsearch_api.store.database import Database
from mpsearch_api.store.holdings import bytes_held, check_quota, owned
from mpsearch_api.store.ids import is_id, new_id
from mpsearch_api.store.rows import moment
from mpsearch_api.store.tables import jobs, stored, uploads

__all__ = ["Catalog"]

PREFIXES: dict[StoredKind, str] = {"model": "mdl", "dataset": "dat", "hardware": "hw"}
MOST_ROWS = 1000


class Catalog:
    """Stored objects; a `tenant` of None is the administrator's view.

    Args:
        database: Where.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

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
            check_quota(connection, tenant, blob.size, most_bytes, blob.sha256)
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
        query = owned(select(stored).where(stored.c.id == name), stored.c.tenant, tenant)
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
        query = owned(select(stored).where(stored.c.kind == kind), stored.c.tenant, tenant)
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
            return bytes_held(connection, tenant)

    def referenced_blobs(self) -> set[str]:
        """Collect the names of all blobs that anything refers to.

        Returns:
            Their sha256.
        """
        with self._database.read() as connection:
            return set(_references(connection))


def _references(connection: Connection) -> Iterator[str]:
    yield from connection.execute(select(stored.c.sha256)).scalars()
    yield from connection.execute(
        select(uploads.c.blob).where(uploads.c.blob.isnot(None))
    ).scalars()
    for text in connection.execute(
        select(jobs.c.artifacts).where(jobs.c.artifacts != "[]")
    ).scalars():
        yield from (artifact["sha256"] for artifact in json.loads(text))


def _stored_of(row: Row[Any]) -> Stored:
    return Stored(
        id=row.id,
        kind=row.kind,
        size=row.size,
        sha256=row.sha256,
        created=moment(row.created),
        **json.loads(row.labels),
    )
