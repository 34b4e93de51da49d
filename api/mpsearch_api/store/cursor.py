"""Cursors of lists: where a page ended, opaque to clients and checked when they come back."""

from __future__ import annotations

import base64
import json

from mpsearch.errors import InputError

__all__ = ["decode", "encode"]

MOST_CHARACTERS = 200


def encode(listing: str, number: int) -> str:
    """Make the cursor of the page that ended before `number`.

    Args:
        listing: Which list, with its filters.
        number: Of the last row shown; rows are numbered as they are made and shown newest first.

    Returns:
        URL-safe text.
    """
    return base64.urlsafe_b64encode(json.dumps([listing, number]).encode()).decode().rstrip("=")


def decode(listing: str, cursor: str) -> int:
    """Read a cursor back.

    Args:
        listing: The list that is asked for.
        cursor: What the client sent.

    Returns:
        The number that `encode` was given.

    Raises:
        InputError: It is not a cursor, or that of another list.
    """
    parts = _parse(cursor)
    if parts is None:
        raise InputError(
            f"cursor {cursor[:40]!r} is none of ours; send back `next` of the page before"
        )
    found, number = parts
    if found != listing:
        raise InputError(
            f"cursor {cursor[:40]!r} belongs to another list; keep the filters of the first page"
        )
    return number


def _parse(cursor: str) -> tuple[str, int] | None:
    if len(cursor) > MOST_CHARACTERS:
        return None
    padded = cursor + "=" * (-len(cursor) % 4)
    try:
        text = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
        listing, number = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    # bool is an int to isinstance, and no number to us.
    if not isinstance(listing, str) or type(number) is not int or not 0 < number < 2**63:
        return None
    return listing, number
