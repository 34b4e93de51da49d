"""Bodies that are files: taken in parts as they come, never whole in memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

import anyio.from_thread
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mpsearch.errors import InputError
from mpsearch_api.blobs.port import Blob
from mpsearch_api.http.service import Service

__all__ = ["announced_digest", "check_digest", "chunks_of", "received_blob"]

CHUNK = 1 << 20
IDLE_SECONDS = 60.0
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_REPR = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):\s*(?:,|;|$)")


async def chunks_of(request: Request) -> AsyncGenerator[bytes, None]:
    """Read a body in parts of about a mebibyte.

    Args:
        request: The request.

    Yields:
        The parts.

    Raises:
        HTTPException: 408, nothing came for a minute.
        ClientDisconnect: The client is gone.
    """
    gathered = bytearray()
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                part = await anext(stream, None)
        except TimeoutError:
            if gathered:
                yield bytes(gathered)
            raise HTTPException(408, f"no byte came for {IDLE_SECONDS:g} s") from None
        except ClientDisconnect:
            # What came is given out first: an upload keeps it.
            if gathered:
                yield bytes(gathered)
            raise
        if part is None:
            break
        gathered += part
        if len(gathered) >= CHUNK:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def announced_digest(request: Request) -> str | None:
    """Read which sha256 the client announced for a body.

    Args:
        request: With `X-Content-SHA256` (hex), `Repr-Digest` or `Content-Digest` (RFC 9530).

    Returns:
        The hash in hex; None: nothing was announced.

    Raises:
        HTTPException: 400, the header cannot be read.
    """
    given = request.headers.get("x-content-sha256")
    if given is not None:
        if not _HEX.fullmatch(given.strip()):
            raise HTTPException(400, "X-Content-SHA256 must be 64 hexadecimal digits")
        return given.strip().lower()
    for name in ("repr-digest", "content-digest"):
        field = request.headers.get(name)
        match = _REPR.search(field) if field is not None else None
        if match is not None:
            try:
                digest = base64.b64decode(match[1], validate=True)
            except binascii.Error:
                digest = b""
            if len(digest) != 32:
                raise HTTPException(400, f"{name}: sha-256 must be 32 bytes in base64")
            return digest.hex()
    return None


def check_digest(announced: str | None, found: str) -> None:
    """Refuse content that is not what was announced.

    Args:
        announced: Sha256 in hex, or None.
        found: Sha256 of what came.

    Raises:
        InputError: They differ.
    """
    if announced is not None and announced != found:
        raise InputError(
            f"the bytes received have sha256 {found}, announced was {announced}; send them again"
        )


async def received_blob(
    request: Request, service: Service, tenant: str, most: int, check: Callable[[bytes], None]
) -> Blob:
    """Store a body as a blob while it comes; what is refused leaves nothing behind.

    Args:
        request: The request.
        service: Has the blob store.
        tenant: Whose it is; few of one tenant may come at once.
        most: Largest size taken, bytes.
        check: Refuses content by how it begins.

    Returns:
        The blob, whose hash is the one announced.

    Raises:
        HTTPException: 413, more bytes were announced than are taken.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:18]) > most:
        raise HTTPException(413, f"a body of {announced[:18]} bytes; at most {most:,} are taken")
    digest = announced_digest(request)
    parts = chunks_of(request)
    first = await anext(parts, b"")
    check(first)

    def pulled() -> Iterator[bytes]:
        # The store pulls from its thread; each part is awaited on the event loop.
        yield first
        while (part := anyio.from_thread.run(_next, parts)) is not None:
            yield part

    with service.receiving(tenant):
        return await service.transfer(lambda: service.blobs.put(pulled(), most=most, sha256=digest))


async def _next(parts: AsyncIterator[bytes]) -> bytes | None:
    return await anext(parts, None)
