"""HEAD and OPTIONS for every path, and the methods that a path allows."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Methods", "MethodsOf"]

_OWN = {"HEAD", "OPTIONS"}


class MethodsOf:
    """Which methods the paths of an application allow, from its OpenAPI document."""

    def __init__(self, app: FastAPI) -> None:
        """Keep the application; its document is read on first use, when all routes are there.

        Args:
            app: The application.
        """
        self._app = app
        self._paths: list[tuple[re.Pattern[str], set[str]]] | None = None

    def allowed(self, path: str) -> list[str]:
        """List the methods of a path.

        Args:
            path: Of a request.

        Returns:
            Methods in alphabetical order; empty where nothing is served.
        """
        found = self.declared(path)
        if "GET" in found:
            found = found | {"HEAD"}
        return sorted(found | {"OPTIONS"}) if found else []

    def declared(self, path: str) -> set[str]:
        """List the methods that have a handler of their own.

        Args:
            path: Of a request.

        Returns:
            The methods.
        """
        if self._paths is None:
            self._paths = [
                (_pattern(template), {name.upper() for name in operations})
                for template, operations in self._app.openapi()["paths"].items()
            ]
            self._paths += [(re.compile(f"/{name}"), {"GET"}) for name in ("docs", "openapi.json")]
        found: set[str] = set()
        for pattern, methods in self._paths:
            if pattern.fullmatch(path):
                found |= methods
        return found


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{[^}]*\}", template)
    return re.compile("[^/]+".join(map(re.escape, parts)))


class Methods:
    """Answers OPTIONS, and HEAD as GET without the body."""

    def __init__(self, app: ASGIApp, methods: MethodsOf) -> None:
        """Wrap an application.

        Args:
            app: The application.
            methods: What its paths allow.
        """
        self._app = app
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on a request."""
        if scope["type"] != "http" or scope["method"] not in _OWN:
            await self._app(scope, receive, send)
            return
        declared = self._methods.declared(scope["path"])
        if scope["method"] == "OPTIONS" and declared and "OPTIONS" not in declared:
            allow = ", ".join(self._methods.allowed(scope["path"])).encode()
            headers = [(b"allow", allow), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 204, "headers": headers[:1]})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] == "HEAD" and "GET" in declared and "HEAD" not in declared:
            scope = {**scope, "method": "GET", "headers": _without_stream(scope["headers"])}
            await self._app(scope, receive, _bodiless(send))
            return
        await self._app(scope, receive, send)


def _without_stream(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Drop Accept, so that HEAD of an event stream ends."""
    return [(name, value) for name, value in headers if name != b"accept"]


def _bodiless(send: Send) -> Any:  # noqa: ANN401
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sent
