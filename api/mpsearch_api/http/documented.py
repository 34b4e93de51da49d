"""What the OpenAPI document says of every answer, errors included."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mpsearch.schemas.problems import Problem
from mpsearch_api.http.problems import MEDIA_TYPE, problem

__all__ = ["COMMON", "TAGS", "answers", "document", "file_answer"]

Answers = dict[int | str, dict[str, Any]]

_REASONS = {
    400: "The request cannot be read: broken JSON, no Host, or a host that is not served.",
    401: "No API key, or one that is unknown, expired or revoked.",
    403: "The key lacks the scope, or another site's page sent the request.",
    404: "There is no such object, or it belongs to another key.",
    405: "The method is not allowed here; `Allow` names those that are.",
    408: "The body stopped coming.",
    409: "The object is not in a state that allows this.",
    412: "The object has changed since.",
    413: "More bytes than are taken.",
    415: "A media type that is not taken here.",
    416: "A range beyond the content.",
    421: "The Host header names another server.",
    422: "The input cannot be used; `errors` points at the values.",
    429: "Too many requests, open jobs or stored bytes; `Retry-After` says when to try again.",
    500: "A fault of the service; the log has it under `request_id`.",
    501: "Not part of this version.",
    503: "The service cannot do this now; try again.",
    504: "The time limit ran out.",
}

_DETAILS = {
    401: "give an API key: Authorization: Bearer mps_…",
    404: "no job job_01j8x3m5kq",
    409: "job job_01j8x3m5kq is running; its result comes when it has succeeded",
    413: "a body of 20,000,000 bytes; at most 16,777,216 are taken",
    415: "the Content-Type must be application/json, not 'text/plain'",
    422: "#/options: unknown option 'w4b8'; did you mean w4a8?",
    429: "600 requests a minute are allowed; try again in 2 s",
    503: "all solvers are busy; try again",
    504: "the problem was not solved within 10 s; run it as a job or ask for a larger gap",
}

TAGS = [
    {"name": "jobs", "description": "Submit a search, follow it, fetch what it found."},
    {"name": "uploads", "description": "Send files, in parts and restartable."},
    {"name": "models", "description": "Uploaded models; they are never unpickled."},
    {"name": "datasets", "description": "Uploaded data sets."},
    {"name": "hardware", "description": "Shipped devices and uploaded cost tables."},
    {"name": "solve", "description": "Allocation problems without a model, answered at once."},
    {"name": "catalogue", "description": "Formats, estimators, solvers and architectures."},
    {"name": "operations", "description": "For those who run the service."},
]


def answers(*statuses: int, success: Answers | None = None) -> Answers:
    """Describe the problems that an operation may answer with.

    Args:
        *statuses: Their statuses.
        success: Answers that are no problem.

    Returns:
        As FastAPI takes it for `responses`.
    """
    found: Answers = dict(success or {})
    for status in statuses:
        example = problem(status, _DETAILS.get(status, _REASONS[status]), path="/v1/jobs")
        answer: dict[str, Any] = {
            "description": _REASONS[status],
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": example.model_dump(exclude_none=True, exclude_defaults=True),
                }
            },
        }
        if status in {429, 503}:
            answer["headers"] = {
                "Retry-After": {"description": "seconds", "schema": {"type": "integer"}}
            }
        found[status] = answer
    return found


def file_answer(media_type: str, description: str) -> Answers:
    """Describe an answer that is a file.

    Args:
        media_type: Such as `image/png`.
        description: What it is.

    Returns:
        As FastAPI takes it for `responses`.
    """
    kind = {"type": "string"}
    if not media_type.startswith("text/"):
        kind["format"] = "binary"
    return {200: {"description": description, "content": {media_type: {"schema": kind}}}}


COMMON = answers(400, 401, 403, 405, 421, 422, 429, 500, 503)
"""What every operation under /v1 may answer."""


def document(app: FastAPI) -> dict[str, Any]:
    """Write the OpenAPI document of an application, once.

    Args:
        app: The application.

    Returns:
        The document.
    """
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
            license_info=app.license_info,
        )
        components = found.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        own = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(own.pop("$defs", {}))
        schemas["Problem"] = own
        components["securitySchemes"] = {
            "key": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key, made with `mpsearch keys create`.",
            }
        }
        for path, operations in found["paths"].items():
            for operation in operations.values():
                if path.startswith("/v1"):
                    operation["security"] = [{"key": []}]
        app.openapi_schema = found
    return app.openapi_schema
