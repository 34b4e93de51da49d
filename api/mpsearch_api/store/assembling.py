"""Putting the pieces of an upload together, each checked, never whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from mpsearch.errors import DocumentError
from mpsearch_api.blobs.parts import PartStore
from mpsearch_api.blobs.port import Blob, BlobStore
from mpsearch_api.faults import StateError
from mpsearch_api.store.tables import upload_parts, uploads

__all__ = ["Pieces", "assembled", "pieces_of"]


@dataclass(frozen=True)
class Pieces:
    """What an upload came in.

    Attributes:
        upload: Its id.
        size: Bytes of the whole; None: there is no such upload.
        rows: Of its pieces, in order.
    """

    upload: str
    size: int | None
    rows: Sequence[Row[Any]]


def pieces_of(connection: Connection, upload: str) -> Pieces:
    """Read what an upload came in.

    Args:
        connection: Any.
        upload: Id.

    Returns:
        Its pieces.
    """
    size = select(uploads.c.size).where(uploads.c.id == upload)
    rows = select(upload_parts).where(upload_parts.c.upload == upload)
    return Pieces(
        upload,
        connection.execute(size).scalar_one_or_none(),
        connection.execute(rows.order_by(upload_parts.c.offset)).all(),
    )


def assembled(pieces: Pieces, blobs: BlobStore) -> Blob:
    """Store the content of a complete upload as a blob; its pieces stay.

    Args:
        pieces: What it came in.
        blobs: Where pieces are, and the blob is to be.

    Returns:
        The blob.

    Raises:
        StateError: Pieces are missing from the record.
    """
    end = 0
    for row in pieces.rows:
        if row.offset != end:
            break
        end += row.size
    if end != pieces.size:
        raise StateError(
            f"upload {pieces.upload} lost bytes: {end} of {pieces.size} are there; delete it and "
            "start again"
        )
    return blobs.put(_content(pieces, blobs.parts))


def _content(pieces: Pieces, parts: PartStore) -> Iterator[bytes]:
    for row in pieces.rows:
        digest = hashlib.sha256()
        for chunk in parts.read(row.place):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != row.sha256:
            raise DocumentError(
                f"upload {pieces.upload} is damaged at {row.offset}: the {row.size} bytes there "
                f"have sha256 {digest.hexdigest()}, received were {row.sha256}; delete it and "
                "start again"
            )
