"""How the server and a solving process talk: a JSON header and a body, each with its length."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, BinaryIO

__all__ = ["KINDS", "pack", "read_async", "read_sync"]

KINDS = {
    "TooLargeError",
    "InfeasibleError",
    "UnsolvedError",
    "DependencyError",
    "InputError",
    "MpsearchError",
}
"""Errors that cross the pipe by name; those under them are told as the one they are under."""

_LENGTHS = struct.Struct(">II")


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """Write one message.

    Args:
        header: What to do, or what came of it.
        body: Bytes that the header is about.

    Returns:
        The frame.
    """
    head = json.dumps(header).encode()
    return _LENGTHS.pack(len(head), len(body)) + head + body


def read_sync(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one message.

    Args:
        stream: A blocking, buffered stream.

    Returns:
        Header and body; None at the end of the stream.
    """
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, body = _LENGTHS.unpack(lengths)
    return json.loads(stream.read(head)), stream.read(body)


async def read_async(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """Read one message; raises IncompleteReadError at the end of the stream.

    Args:
        stream: From a subprocess.

    Returns:
        Header and body.
    """
    head, body = _LENGTHS.unpack(await stream.readexactly(_LENGTHS.size))
    return json.loads(await stream.readexactly(head)), await stream.readexactly(body)
