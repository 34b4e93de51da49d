"""Requests that a browser was tricked into: DNS rebinding and other sites' pages."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mpsearch_api.http.problems import ProblemResponse, problem

__all__ = ["Borders", "host_name", "is_local", "is_loopback"]

_SAFE = {"GET", "HEAD", "OPTIONS"}
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only.

    Args:
        host: Name or address; other names than `localhost` are not looked up and do not count.

    Returns:
        Whether it is.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_local(client: str, headers: Headers) -> bool:
    """Tell whether somebody on this machine asks, and no proxy here on behalf of somebody else.

    Args:
        client: Address that the request came from.
        headers: Of the request.

    Returns:
        Whether it is.
    """
    return is_loopback(client) and not any(name in headers for name in _FORWARDED)


def host_name(header: str) -> str | None:
    """Read the name out of a Host header.

    Args:
        header: `NAME`, `NAME:PORT` or `[IPV6]:PORT`.

    Returns:
        The name in lower case, or None where the header is malformed.
    """
    try:
        parts = urlsplit(f"//{header}")
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return name


class Borders:
    """Answers requests only that were meant for this server and come from no other site's page.

    A page of another site can make a browser send requests here, and, by answering its own name
    with 127.0.0.1 (DNS rebinding), even read the answers. The Host header then names the other
    site, and the Origin header does; both are refused.
    """

    def __init__(
        self, app: ASGIApp, hosts: Iterable[str], origins: Iterable[str], *, any_host: bool
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosts: Names that are answered.
            origins: Origins, such as `https://example.org`, whose pages may send requests.
            any_host: Whether every name is answered, since keys guard everything.
        """
        self._app = app
        self._hosts = {host.lower().strip("[]") for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in {"http", "websocket"}:
            refusal = self._refusal(scope)
            if refusal is not None:
                status, detail = refusal
                found = problem(
                    status,
                    detail,
                    path=scope["path"],
                    request_id=scope.get("state", {}).get("request_id"),
                )
                await ProblemResponse(found)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        given = headers.getlist("host")
        name = host_name(given[0]) if len(given) == 1 else None
        if name is None:
            return 400, "one Host header is needed, with a name or an address"
        if not self._any_host and name not in self._hosts:
            return 421, (
                f"this server is not called {name[:200]!r}; name it in MPSEARCH_ALLOWED_HOSTS if "
                "it should be"
            )
        if scope.get("method", "GET") in _SAFE and scope["type"] == "http":
            return None
        origin = headers.get("origin", "").lower().rstrip("/")
        if origin:
            own = f"{scope.get('scheme', 'http').replace('ws', 'http')}://{given[0].lower()}"
            if origin != own and origin not in self._origins:
                return 403, f"a page of {origin[:200]} may not send requests here"
        elif headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return 403, "a page of another site may not send requests here"
        return None
