"""Every refusal and failure as an RFC 9457 problem document."""

from __future__ import annotations

import errno
import http
import math
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from mpsearch.errors import (
    DependencyError,
    InfeasibleError,
    InputError,
    MpsearchError,
    UnsolvedError,
)
from mpsearch.schemas.problems import FieldProblem, Problem
from mpsearch_api import logs
from mpsearch_api.faults import QuotaError, ServiceError, UnavailableError

__all__ = ["MEDIA_TYPE", "ProblemResponse", "install", "problem", "problem_of"]

MEDIA_TYPE = "application/problem+json"
SHOWN_FAULTS = 20

_LIBRARY: tuple[tuple[type[MpsearchError], int, str], ...] = (
    (InfeasibleError, 422, "Infeasible"),
    (UnsolvedError, 504, "Not solved in time"),
    (DependencyError, 503, "A dependency is missing or failed"),
    (InputError, 422, "Input cannot be used"),
)
"""Errors of the library -> status and title; the first that fits."""


class ProblemResponse(Response):
    """A problem document as the answer."""

    media_type = MEDIA_TYPE

    def __init__(self, found: Problem, headers: Mapping[str, str] | None = None) -> None:
        """Write the document.

        Args:
            found: What went wrong.
            headers: More headers, such as `Retry-After`.
        """
        content = found.model_dump_json(exclude_none=True, exclude_defaults=True)
        super().__init__(content, status_code=found.status, headers=dict(headers or {}))


def problem(
    status: int,
    detail: str,
    *,
    title: str = "",
    path: str | None = None,
    request_id: str | None = None,
    **more: Any,
) -> Problem:
    """Compose a problem document.

    Args:
        status: HTTP status.
        detail: What was wrong with this request, and what to do.
        title: The kind of problem, the same each time; default: the status in words.
        path: Path of the request.
        request_id: Under which the log knows it.
        **more: Other members, such as `errors` and `minimum`.

    Returns:
        The document.
    """
    title = title or http.HTTPStatus(status).phrase
    kind = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")
    return Problem(
        type=f"urn:mpsearch:problem:{kind}",
        title=title,
        status=status,
        detail=detail,
        instance=path,
        request_id=request_id,
        **more,
    )


def problem_of(error: MpsearchError) -> tuple[Problem, dict[str, str]]:
    """Translate an error that mpsearch raised on purpose.

    Args:
        error: The error.

    Returns:
        The document, and headers that go with it.
    """
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    if isinstance(error, QuotaError) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, ServiceError):
        return problem(error.status, str(error), title=error.title), headers
    if isinstance(error, InfeasibleError) and error.minimum:
        more["minimum"] = error.minimum
    for kind, status, title in _LIBRARY:
        if isinstance(error, kind):
            if status >= 503:
                headers["Retry-After"] = "5"
            return problem(status, str(error), title=title, **more), headers
    return problem(500, str(error)), headers


def install(app: FastAPI) -> None:
    """Make an application answer with problem documents only.

    Args:
        app: The application.
    """
    app.add_exception_handler(MpsearchError, _library_error)
    app.add_exception_handler(OSError, _system_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def located(found: Problem, request: Request) -> Problem:
    """Add where a problem happened.

    Args:
        found: The problem.
        request: The request.

    Returns:
        The problem with path and request id.
    """
    state = request.scope.get("state", {})
    return found.model_copy(
        update={"instance": request.url.path, "request_id": state.get("request_id")}
    )


async def _library_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MpsearchError)
    found, headers = problem_of(error)
    return ProblemResponse(located(found, request), headers)


async def _system_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        raise error
    logs.get("http").error("the disk is full", error=str(error))
    found, headers = problem_of(
        UnavailableError("the disk of the service is full; tell whoever runs it, and try again")
    )
    return ProblemResponse(located(found, request), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == "Not Found":
        detail = f"nothing is served at {request.url.path}; see /docs"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = request.app.state.methods.allowed(request.url.path)
        headers["Allow"] = ", ".join(allowed) or headers.get("Allow", "")
        detail = f"{request.method} is not allowed on {request.url.path}; use {headers['Allow']}"
    found = problem(error.status_code, detail)
    return ProblemResponse(located(found, request), headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = list(error.errors())
    errors = [
        FieldProblem(pointer=_pointer(fault["loc"]), detail=_advice(fault))
        for fault in faults[:SHOWN_FAULTS]
    ]
    first = f"{errors[0].pointer}: {errors[0].detail}" if errors else "see errors"
    more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
    found = problem(422, first + more, title="Input cannot be used", errors=errors)
    return ProblemResponse(located(found, request))


def _pointer(place: Iterable[int | str]) -> str:
    steps = [str(step) for step in place]
    if steps[:1] == ["body"]:
        escaped = [step.replace("~", "~0").replace("/", "~1") for step in steps[1:]]
        return "/".join(["#", *escaped])
    return " ".join(steps)


def _advice(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    given = fault.get("input")
    if isinstance(given, (str, int, float)) and len(str(given)) <= 80:
        return f"{message}, not {given!r}"
    return message
