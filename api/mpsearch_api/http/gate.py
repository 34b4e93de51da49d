"""Who may come in: API keys, open mode, and how often."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mpsearch.errors import InputError, MpsearchError
from mpsearch.schemas.problems import Problem
from mpsearch_api import logs
from mpsearch_api.faults import UnavailableError
from mpsearch_api.http.borders import is_local, is_loopback
from mpsearch_api.http.problems import ProblemResponse, problem, problem_of
from mpsearch_api.http.rates import RateLimit
from mpsearch_api.http.service import Service
from mpsearch_api.settings import Settings
from mpsearch_api.store.keys import Principal

__all__ = ["LOCAL_TENANT", "Gate", "check_open_mode"]

LOCAL_TENANT = "local"
LOCAL = Principal(LOCAL_TENANT, None, frozenset({"read", "write"}), open_mode=True)
"""Who everybody is in open mode; `trusted` and `admin` need a key."""

OPEN_SECONDS = 1.0


def check_open_mode(settings: Settings, host: str) -> None:
    """Refuse to serve without keys where others could reach it.

    Args:
        settings: Of the service.
        host: Address to listen on.

    Raises:
        InputError: Open mode is asked for on an address that is not loopback.
    """
    if settings.open_mode and not is_loopback(host):
        raise InputError(
            f"open mode on {host} would let everyone in who can reach it; serve on 127.0.0.1, or "
            "make a key with `mpsearch keys create NAME` and leave MPSEARCH_OPEN_MODE unset"
        )


class Gate:
    """Lets a request under /v1 in with a key, or without one in open mode, within its rate."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wrap an application.

        Args:
            app: The application.
            service: Has the keys and the limits.
        """
        self._app = app
        self._service = service
        self._rates = RateLimit(service.settings.requests_per_minute)
        self._failures = RateLimit(service.settings.requests_per_minute)
        self._open_until = 0.0
        self._log = logs.get("gate")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http" or not _guarded(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            refusal = await self._admit(scope)
        except UnavailableError as error:
            # Where the database is and who asks it is nothing for strangers.
            self._log.warning("no key can be checked", reason=str(error))
            refusal = problem_of(
                UnavailableError("the database does not answer; try again shortly")
            )
        except MpsearchError as error:
            refusal = problem_of(error)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        found, headers = refusal
        place = {"instance": scope["path"], "request_id": scope["state"].get("request_id")}
        await ProblemResponse(found.model_copy(update=place), headers)(scope, receive, send)

    async def _admit(self, scope: Scope) -> tuple[Problem, dict[str, str]] | None:
        client = scope["client"][0] if scope.get("client") else ""
        given = Headers(scope=scope).getlist("authorization")
        principal: Principal | None = None
        if given:
            scheme, _, token = given[0].partition(" ")
            if len(given) == 1 and scheme.lower() == "bearer":
                principal = await self._service.call(self._service.store.keys.check, token.strip())
            complaint = "the API key is unknown, expired or revoked"
        elif await self._is_open(client, Headers(scope=scope)):
            principal = LOCAL
        else:
            complaint = "give an API key: Authorization: Bearer mps_…"
        if principal is None:
            # Told apart only here, so that nobody's failures lock out a valid key behind a proxy.
            wait = self._failures.take(client)
            if wait:
                return _too_many("too many requests without a valid key", wait)
            return problem(401, complaint), {"WWW-Authenticate": 'Bearer realm="mpsearch"'}
        wait = self._rates.take(principal.key_id or client)
        if wait:
            most = self._service.settings.requests_per_minute
            return _too_many(f"{most} requests a minute are allowed", wait)
        scope["state"]["principal"] = principal
        return None

    async def _is_open(self, client: str, headers: Headers) -> bool:
        settings = self._service.settings
        if settings.open_mode is False or not is_loopback(self._service.host):
            return False
        if not is_local(client, headers):
            return False
        if settings.open_mode:
            return True
        if time.monotonic() < self._open_until:
            return True
        if await self._service.call(self._service.store.keys.any):
            return False
        self._open_until = time.monotonic() + OPEN_SECONDS
        return True


def _guarded(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")


def _too_many(reason: str, wait: float) -> tuple[Problem, dict[str, str]]:
    seconds = max(1, round(wait + 0.5))
    detail = f"{reason}; try again in {seconds} s"
    return problem(429, detail), {"Retry-After": str(seconds)}
