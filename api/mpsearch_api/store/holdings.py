"""What a tenant holds, and may hold: stored objects, and uploads at their announced size."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Select, func, or_, select

from mpsearch_api.faults import QuotaError
from mpsearch_api.store.submitting import hold_tenants
from mpsearch_api.store.tables import stored, uploads

__all__ = ["bytes_held", "check_quota", "owned"]


def owned(query: Select[Any], column: Column[str], tenant: str | None) -> Select[Any]:
    """Keep to the rows of one tenant.

    Args:
        query: Of any table.
        column: Its column with the tenant.
        tenant: Whose; None: everybody's.

    Returns:
        The narrower query.
    """
    return query if tenant is None else query.where(column == tenant)


def bytes_held(connection: Connection, tenant: str, sha256: str | None = None) -> int:
    """Count bytes; an upload counts until it has become an object, such as one of this blob.

    Args:
        connection: Any.
        tenant: Whose.
        sha256: Of a blob that is about to become an object.

    Returns:
        Bytes.
    """
    held = select(func.coalesce(func.sum(stored.c.size), 0)).where(stored.c.tenant == tenant)
    objects = select(stored.c.sha256).where(stored.c.tenant == tenant)
    coming = select(func.coalesce(func.sum(uploads.c.size), 0)).where(
        uploads.c.tenant == tenant,
        or_(uploads.c.blob.is_(None), uploads.c.blob.not_in(objects)),
    )
    if sha256 is not None:
        coming = coming.where(or_(uploads.c.blob.is_(None), uploads.c.blob != sha256))
    return sum(int(connection.execute(query).scalar_one()) for query in (held, coming))


def check_quota(
    connection: Connection, tenant: str, size: int, most: int | None, sha256: str | None = None
) -> None:
    """Refuse bytes beyond a quota.

    Args:
        connection: In a transaction.
        tenant: Whose.
        size: Bytes to come.
        most: Bytes that the tenant may hold; None: any number.
        sha256: Of the blob that is about to become an object.

    Raises:
        QuotaError: `most` would be passed.
    """
    if most is None:
        return
    # Two uploads at once are then counted one after the other.
    hold_tenants(connection, [tenant])
    held = bytes_held(connection, tenant, sha256)
    if held + size > most:
        raise QuotaError(
            f"{size} bytes more than the {held} held already pass the {most} allowed; delete "
            "models, data sets or unfinished uploads"
        )
