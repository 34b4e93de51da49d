"""Request bodies read without surprises: a size limit, one media type, and strict JSON."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from mpsearch_api.solving.json_text import parse_json

__all__ = ["MOST_REQUEST", "StrictRoute", "limited_body", "parsed_body"]

MOST_REQUEST = 512 * 1024
"""Largest JSON request but for problems and cost tables, bytes: a job's is kept, and listed with
two hundred others."""

AT_ONCE = 16 * 1024
"""Bytes of JSON that are parsed on the event loop; more would keep others waiting."""

Body = TypeVar("Body", bound=BaseModel)


async def limited_body(request: Request, most: int) -> bytes:
    """Read a body whole, up to a size; a length announced beyond it is refused unread.

    Args:
        request: The request.
        most: Bytes.

    Returns:
        The body.

    Raises:
        HTTPException: 413, there is more.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:18]) > most:
        raise HTTPException(413, f"a body of {announced[:18]} bytes; at most {most:,} are taken")
    chunks: list[bytes] = []
    size = 0
    async for chunk in Request.stream(request):
        size += len(chunk)
        if size > most:
            raise HTTPException(413, f"the body has more than {most:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def parsed_body(request: Request, kind: type[Body], most: int) -> Body:
    """Read a JSON body where FastAPI does not, since other bodies are taken too.

    Args:
        request: The request.
        kind: What it should hold.
        most: Bytes.

    Returns:
        The body.

    Raises:
        RequestValidationError: It does not fit.
    """
    value = await _parsed(await limited_body(request, min(most, MOST_REQUEST)))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from error


async def _parsed(body: bytes) -> Any:  # noqa: ANN401
    try:
        if len(body) <= AT_ONCE:
            return parse_json(body)
        return await anyio.to_thread.run_sync(parse_json, body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body cannot be read: {error}") from error


class _StrictRequest(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            most = min(self.app.state.service.settings.body_bytes, MOST_REQUEST)
            self._body = await limited_body(self, most)
        return self._body

    async def json(self) -> Any:  # noqa: ANN401
        return await _parsed(await self.body())


class StrictRoute(APIRoute):
    """A route whose JSON body is read as above; another media type is answered with 415."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route's handler.

        Returns:
            The handler.
        """
        handle = super().get_route_handler()
        has_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if has_body and kind != "application/json":
                given = f"not {kind!r}" if kind else "and none is given"
                raise HTTPException(415, f"the Content-Type must be application/json, {given}")
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict
