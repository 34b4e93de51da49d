"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from mpsearch_api.http.access import TheService
from mpsearch_api.http.borders import is_local
from mpsearch_api.http.documented import Answers, answers
from mpsearch_api.http.metrics import CONTENT_TYPE
from mpsearch_api.http.readiness import find_faults

__all__ = ["router"]

router = APIRouter(tags=["operations"], responses=answers(400, 405, 421, 500))


class Health(BaseModel):
    """The process answers."""

    status: str = Field(examples=["alive"])


class Readiness(BaseModel):
    """Whether jobs would be taken and run."""

    status: str = Field(examples=["ready", "not ready"])
    faults: dict[str, str] = Field(default_factory=dict, description="part -> what is wrong")


@router.get("/healthz", response_model=Health, operation_id="getHealth", summary="Alive?")
async def healthz() -> Health:
    """Say that the process answers; nothing else is looked at."""
    return Health(status="alive")


_NOT_READY: Answers = {503: {"model": Readiness, "description": "A part is not ready."}}


@router.get(
    "/readyz",
    response_model=Readiness,
    operation_id="getReadiness",
    summary="Ready for jobs?",
    responses=_NOT_READY,
)
async def readyz(request: Request, service: TheService) -> Response:
    """Say whether database and blob store can be written and a dispatcher runs jobs."""
    faults = await find_faults(service)
    client = request.client.host if request.client else ""
    if not is_local(client, request.headers):
        # Reasons name addresses and paths; strangers are told the parts alone.
        faults = dict.fromkeys(faults, "not ready")
    found = Readiness(status="not ready" if faults else "ready", faults=faults)
    status = 503 if faults else 200
    return Response(found.model_dump_json(), status, media_type="application/json")


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="For Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Text exposition format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **answers(401, 503),
    },
)
async def metrics(request: Request, service: TheService) -> Response:
    """Give counters; to this machine, and to others with an administrator's key."""
    client = request.client.host if request.client else ""
    if not is_local(client, request.headers):
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        principal = None
        if scheme.lower() == "bearer":
            principal = await service.call(service.store.keys.check, token.strip())
        if principal is None or "admin" not in principal.scopes:
            raise HTTPException(
                401,
                "metrics need a key with the scope admin",
                {"WWW-Authenticate": 'Bearer realm="mpsearch"'},
            )
    for status, count in (await service.call(service.store.jobs.counts)).items():
        service.metrics.jobs.labels(status).set(count)
    content = await service.call(service.metrics.text)
    return Response(content, media_type=CONTENT_TYPE)
