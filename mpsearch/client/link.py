"""Settings of a connection, and requests and answers as httpx2 has them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpsearch.client.steps import Answer, Call, LinkError
from mpsearch.errors import InputError

# httpx2 takes a tenth of a second to load; a client that is not made yet does not need it.
if TYPE_CHECKING:
    import httpx2

__all__ = [
    "DEFAULT_SERVER",
    "Connection",
    "arguments",
    "connection",
    "failures",
    "head_of",
    "link_error",
]

DEFAULT_SERVER = "http://127.0.0.1:8000"
CONNECT = 10.0
"""Seconds for connecting, at most."""


@dataclass(frozen=True)
class Connection:
    """Where the service is and how to speak to it.

    Attributes:
        server: Address, without a slash at the end.
        api_key: Token, or None.
        timeout: Seconds for connecting, and between two parts of an answer or a body.
    """

    server: str
    api_key: str | None
    timeout: float

    def options(self) -> dict[str, Any]:
        """Write the settings of an httpx2 client."""
        import httpx2

        from mpsearch import __version__

        headers = {"user-agent": f"mpsearch/{__version__}", "accept": "application/json"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        return {
            "base_url": self.server,
            "headers": headers,
            # A proxy of the environment cannot reach this machine's own services.
            "trust_env": not _is_loopback(httpx2.URL(self.server).host),
        }


def connection(server: str | None, api_key: str | None, timeout: float) -> Connection:
    """Settle where the service is.

    Args:
        server: Address; by default `MPSEARCH_SERVER`, or this machine's port 8000.
        api_key: Token; by default `MPSEARCH_API_KEY`.
        timeout: Seconds for connecting, and between two parts of an answer or a body.

    Returns:
        The settings.

    Raises:
        InputError: The address is no http or https URL, or the token cannot be a header.
    """
    import httpx2

    address = (server or os.environ.get("MPSEARCH_SERVER") or DEFAULT_SERVER).strip().rstrip("/")
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise InputError(f"server {address!r} is no address: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
        raise InputError(f"server {address!r}: write http://HOST:PORT or https://HOST")
    key = api_key or os.environ.get("MPSEARCH_API_KEY") or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("the API key has characters that a token never has; copy it again")
    if timeout <= 0:
        raise InputError(f"timeout {timeout} must be greater than zero seconds")
    return Connection(address, key, timeout)


def arguments(call: Call, timeout: float) -> dict[str, Any]:
    """Write a request as the arguments of `httpx2.Client.build_request`.

    Args:
        call: The request.
        timeout: The client's usual time, seconds.

    Returns:
        The arguments.
    """
    import httpx2

    silence = timeout if call.silence is None else call.silence
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.query) or None,
        "headers": dict(call.headers),
        "content": call.content,
        "timeout": httpx2.Timeout(timeout, read=silence, connect=min(timeout, CONNECT)),
    }


def failures() -> tuple[type[Exception], ...]:
    """List what httpx2 raises when a request gets no complete answer."""
    import httpx2

    return httpx2.TransportError, httpx2.DecodingError


def head_of(response: httpx2.Response, content: bytes = b"") -> Answer:
    """Take over what came back.

    Args:
        response: The response.
        content: Its body, where it was read.

    Returns:
        The answer.
    """
    headers: Mapping[str, str] = {k.lower(): v for k, v in response.headers.items()}
    return Answer(response.status_code, headers, content)


def link_error(error: Exception) -> LinkError:
    """Say in words why there was no answer.

    Args:
        error: What httpx2 raised.

    Returns:
        The error to resume a flow with.
    """
    import httpx2

    silent = isinstance(error, httpx2.ReadTimeout)
    words = str(error).strip() or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        words = f"{type(error).__name__}: it took too long"
    return LinkError(words, silent=silent)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
