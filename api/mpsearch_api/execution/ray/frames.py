"""Messages on a stream socket: a header of JSON, then bytes that only their receiver understands.

The attempt never unpickles what the job's process sends; it passes the bytes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["FrameReader", "framed"]

LONGEST_HEADER = 2**20

Header = dict[str, Any]


def framed(header: Header, body: bytes = b"") -> list[bytes]:
    """Write a message.

    Args:
        header: What can be said in JSON.
        body: The rest.

    Returns:
        Pieces to send one after the other; the body is not copied.
    """
    text = json.dumps(header | {"size": len(body)}).encode()
    return [len(text).to_bytes(4, "big") + text, body]


class FrameReader:
    """Puts messages together from what arrives."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._buffer = bytearray()
        self._header: Header | None = None

    @property
    def midway(self) -> bool:
        """Whether a message has begun that is not complete."""
        return bool(self._buffer) or self._header is not None

    def read(self, chunk: bytes) -> Iterator[tuple[Header, bytes]]:
        """Take more bytes.

        Args:
            chunk: As they arrived.

        Yields:
            The messages completed by them.

        Raises:
            ValueError: This is no message.
        """
        self._buffer += chunk
        while True:
            if self._header is None:
                size = int.from_bytes(self._buffer[:4], "big")
                if size > LONGEST_HEADER:
                    raise ValueError(f"a header of {size} bytes")
                if len(self._buffer) < 4 + size or len(self._buffer) < 4:
                    return
                self._header = json.loads(self._buffer[4 : 4 + size])
                del self._buffer[: 4 + size]
            size = int(self._header["size"])
            if len(self._buffer) < size:
                return
            body = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
            header, self._header = self._header, None
            yield header, body
