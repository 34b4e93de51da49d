"""The outermost layer: request id, log line, latency, security headers, and the last resort."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpsearch_api import logs
from mpsearch_api.http.metrics import Metrics
from mpsearch_api.http.problems import ProblemResponse, problem

__all__ = ["Trace"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_QUIET = {"/healthz", "/readyz", "/metrics"}

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
API_PATHS = {"/v1", "/healthz", "/readyz", "/metrics", "/openapi.json"}
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src https://fastapi.tiangolo.com data:; "
    "script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net; frame-ancestors 'none'"
)
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'"
)
API_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class Trace:
    """Gives every request an id and every answer its headers; turns surprises into problems."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Wrap an application.

        Args:
            app: The application.
            metrics: Where latencies are counted.
        """
        self._app = app
        self._metrics = metrics
        self._log = logs.get("http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(scope, MutableHeaders(scope=message), request_id)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, sent)
            except Exception:
                path = quote(scope["path"])
                self._log.exception("request failed", path=path, method=scope["method"])
                if status:
                    raise  # half an answer is out; closing the connection is all that is left
                found = problem(
                    500,
                    "the service failed; its log has more under this request id",
                    path=scope["path"],
                    request_id=request_id,
                )
                await ProblemResponse(found)(scope, receive, sent)
            finally:
                self._tell(scope, status, time.perf_counter() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        state = scope.get("state", {})
        if not state.get("waits"):
            # Some servers pass any word on as a method, and each label is kept for ever.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).observe(seconds)
        if scope["path"] in _QUIET and status < 400:
            return
        facts: dict[str, Any] = {
            "method": scope["method"],
            "path": quote(scope["path"]),  # a terminal would obey what it is told
            "status": status,
            "seconds": round(seconds, 5),
        }
        principal = state.get("principal")
        if principal is not None:
            facts["key"] = principal.key_id
        job = state.get("job") or scope.get("path_params", {}).get("job_id")
        if job:
            facts["job"] = job
        self._log.info("request", **facts)


def _route(scope: Scope) -> str:
    # The template, not the path: a label of every job's id would grow without end.
    context = scope.get("fastapi", {}).get("effective_route_context")
    route = context or scope.get("route")
    return str(getattr(route, "path_format", "") or "other")


def _add_headers(scope: Scope, headers: MutableHeaders, request_id: str) -> None:
    headers["X-Request-ID"] = request_id
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    path = scope["path"]
    headers.setdefault("Content-Security-Policy", _policy(path))
    if path.startswith("/v1"):
        headers.setdefault("Cache-Control", "private, no-store")


def _policy(path: str) -> str:
    if path == "/docs":
        return DOCS_POLICY
    if path.startswith("/v1/") or path in API_PATHS:
        return API_POLICY
    return PAGE_POLICY
