"""`/v1/solve`: an allocation problem answered at once."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mpsearch_api.http.access import Reader, TheService
from mpsearch_api.http.bodies import limited_body
from mpsearch_api.http.documented import COMMON, answers

__all__ = ["router"]

SOFT_SHARE = 0.8

router = APIRouter(tags=["solve"], responses=COMMON)

_EXAMPLE = {
    "version": 1,
    "groups": [
        {
            "name": "conv1",
            "options": [
                {"name": "w4a4", "loss": 0.0123, "costs": {"size": 0.018}},
                {"name": "w8a8", "loss": 0.0001, "costs": {"size": 0.036}},
            ],
        }
    ],
    "limits": {"size": 0.02},
}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["groups", "limits"],
    "description": "a problem file, as `mpsearch solve` reads it; see docs/solvers.md",
    "properties": {
        "version": {"const": 1},
        "groups": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "options"],
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "options": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name", "loss"],
                            "properties": {
                                "name": {"type": "string", "minLength": 1},
                                "loss": {"type": "number"},
                                "costs": {
                                    "type": "object",
                                    "additionalProperties": {"type": "number"},
                                },
                            },
                        },
                    },
                },
            },
        },
        "limits": {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {"type": "number"},
                    {
                        "type": "object",
                        "properties": {"min": {"type": "number"}, "max": {"type": "number"}},
                    },
                ]
            },
        },
        "fixed": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        "forbidden": {
            "type": ["array", "null"],
            "items": {"type": "array", "items": {"type": "string"}},
        },
        "ties": {
            "type": ["array", "null"],
            "items": {"type": "array", "items": {"type": "string"}},
        },
        "goal": {"type": ["object", "null"]},
        "interactions": {"type": ["array", "null"], "items": {"type": "object"}},
    },
}


class SolutionDocument(BaseModel):
    """A choice for every group with its certificate, or the reason why there is none."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(examples=["optimal", "feasible", "infeasible", "unknown"])
    objective: float | None
    bound: float | None = Field(description="proven lower bound of the goal")
    gap: float | None = Field(description="(objective - bound) / max(|objective|, |bound|)")
    choice: dict[str, str] = Field(description="group -> option")
    usage: dict[str, float]
    loss: float | None = None
    method: str
    reason: str = ""
    solver: str
    seconds: float
    shadow_prices: dict[str, float] = Field(default_factory=dict)
    binding_steps: dict[str, str] = Field(default_factory=dict)
    note: str = ""
    minimum: dict[str, float] | None = Field(
        default=None, description="infeasible: least achievable use of each resource alone"
    )
    maximum: dict[str, float] | None = None
    minimum_given_others: dict[str, float | None] | None = None
    conflict: list[str] | None = Field(default=None, description="limits that cannot hold together")


@router.post(
    "/v1/solve",
    response_model=SolutionDocument,
    operation_id="solveProblem",
    summary="Solve an allocation problem",
    description="The body is a problem file. Groups, options and time are limited; larger ones "
    "belong to `mpsearch solve` on a machine of your own. An infeasible problem is an answer, not "
    "an error: `status` says so and `minimum` what could be achieved.",
    responses=answers(413, 415, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _PROBLEM, "example": _EXAMPLE}},
        }
    },
)
async def solve_problem(
    request: Request,
    service: TheService,
    caller: Reader,
    method: Annotated[
        str, Query(min_length=1, max_length=64, description="see GET /v1/solvers")
    ] = "auto",
    gap: Annotated[float, Query(ge=0, lt=1, description="relative gap to prove")] = 1e-6,
    time_limit: Annotated[
        float | None,
        Query(gt=0, le=86_400, description="seconds; the best answer so far is given then"),
    ] = None,
    seed: Annotated[int, Query(ge=0, le=2**32 - 1)] = 0,
) -> Response:
    """Solve a problem file."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"the Content-Type must be application/json, not {kind!r}")
    settings = service.settings
    # Not parsed here: 16 MiB of JSON would keep every other request waiting.
    body = await limited_body(request, settings.body_bytes)
    limit = service.solver.seconds * SOFT_SHARE
    task = {
        "task": "solve",
        "method": method,
        "gap": gap,
        "time_limit": min(time_limit or limit, limit),
        "seed": seed,
        "groups": settings.solve_groups,
        "choices": settings.solve_choices,
    }
    with service.metrics.solving():
        found = await service.solver.run(task, body, tenant=caller.tenant)
    return Response(found, media_type="application/json")
