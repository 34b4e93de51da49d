"""What a finished job produced, and solving it again for another budget."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from mpsearch.export import render
from mpsearch.hardware.resources import known_resources
from mpsearch.schemas import Allocation, Costs, Frontier, Profile
from mpsearch.schemas.jobs import Job, ResolveRequest
from mpsearch_api.http.access import OwnJob, Reader, TheService
from mpsearch_api.http.answers import artifact_answer, artifact_of, json_answer
from mpsearch_api.http.bodies import StrictRoute
from mpsearch_api.http.documented import COMMON, answers, file_answer
from mpsearch_api.http.service import Service
from mpsearch_api.http.submission import check_resolve

__all__ = ["router"]

SOFT_SHARE = 0.8
PAGE_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'none'"
)
_FORMS = {"html": "report.html", "png": "frontier.png", "csv": "layers.csv", "txt": "log.txt"}

router = APIRouter(
    tags=["jobs"], route_class=StrictRoute, responses={**COMMON, **answers(404, 409)}
)
ETAGGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The content of the ETag in If-None-Match."}
}


@router.get(
    "/v1/jobs/{job_id}/result",
    response_model=Allocation,
    operation_id="getResult",
    summary="The allocation",
    responses=ETAGGED,
)
async def get_result(request: Request, job: OwnJob, service: TheService) -> Response:
    """Give the allocation with its certificate and, unless not wanted, its verification."""
    return await artifact_answer(request, service, artifact_of(job, "allocation.json"))


@router.get(
    "/v1/jobs/{job_id}/profile",
    response_model=Profile,
    operation_id="getProfile",
    summary="The scores",
    responses=ETAGGED,
)
async def get_profile(request: Request, job: OwnJob, service: TheService) -> Response:
    """Give the predicted loss of every group at every option."""
    return await artifact_answer(request, service, artifact_of(job, "profile.json"))


@router.get(
    "/v1/jobs/{job_id}/costs",
    response_model=Costs,
    operation_id="getCosts",
    summary="The prices",
    responses=ETAGGED,
)
async def get_costs(request: Request, job: OwnJob, service: TheService) -> Response:
    """Give the cost of every group at every option."""
    return await artifact_answer(request, service, artifact_of(job, "costs.json"))


@router.get(
    "/v1/jobs/{job_id}/frontier",
    response_model=Frontier,
    operation_id="getFrontier",
    summary="All Pareto-optimal allocations",
    responses={**ETAGGED, **answers(504)},
)
async def get_frontier(
    request: Request,
    job: OwnJob,
    service: TheService,
    caller: Reader,
    resource: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=200,
            description="traded against predicted loss; default: that of the job's report",
            examples=known_resources()[:1],
        ),
    ] = None,
) -> Response:
    """Give the frontier of one resource, computed from the stored scores and prices."""
    if resource is None:
        return await artifact_answer(request, service, artifact_of(job, "frontier.json"))
    task = {"task": "frontier", "resource": resource, **await _sources(service, job)}
    return json_answer(request, await service.solver.run(task, tenant=caller.tenant))


@router.get(
    "/v1/jobs/{job_id}/report",
    response_class=Response,
    operation_id="getReport",
    summary="The report, as a page or as a plot",
    responses={
        200: {
            "description": "The report.",
            "content": {
                "text/html": {"schema": {"type": "string"}},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "text/csv": {"schema": {"type": "string"}},
                "text/plain": {"schema": {"type": "string"}},
            },
        },
        **ETAGGED,
    },
)
async def get_report(
    request: Request,
    job: OwnJob,
    service: TheService,
    format: Annotated[  # noqa: A002 (the word of the query)
        Literal["html", "png", "csv", "txt"],
        Query(description="the page, the plot of the frontier, the table of layers, or the log"),
    ] = "html",
) -> Response:
    """Give the report."""
    return await _file(request, service, job, _FORMS[format])


@router.get(
    "/v1/jobs/{job_id}/artifacts/{name}",
    response_class=Response,
    operation_id="getArtifact",
    summary="A file that the job produced",
    responses={**file_answer("*/*", "The file, as the job's list of artifacts has it."), **ETAGGED},
)
async def get_artifact(
    request: Request,
    job: OwnJob,
    service: TheService,
    name: Annotated[str, Path(max_length=200, examples=["layers.csv"])],
) -> Response:
    """Give a file by its name in the job's `artifacts`."""
    return await _file(request, service, job, name)


@router.post(
    "/v1/jobs/{job_id}/solve",
    response_model=Allocation,
    operation_id="resolveJob",
    summary="Solve again for another budget",
    description="Solves a finished job's stored scores and prices for another budget, without "
    "touching the model: milliseconds. Nothing is measured, so there is no verification; an "
    "infeasible budget is a problem that names the least achievable.",
    responses=answers(413, 415, 504),
)
async def resolve_job(
    job: OwnJob, body: ResolveRequest, service: TheService, caller: Reader
) -> Response:
    """Solve a finished job's scores and prices for another budget."""
    check_resolve(body)
    limit = service.solver.seconds * SOFT_SHARE
    task = {
        "task": "allocate",
        **await _sources(service, job),
        "budget": body.budget,
        "method": body.solver.method,
        "gap": body.solver.gap,
        "time_limit": min(body.solver.time_limit or limit, limit),
        "seed": job.request.seed,
        "monotone": body.monotone,
    }
    with service.metrics.solving():
        found = await service.solver.run(task, tenant=caller.tenant)
    return Response(found, media_type="application/json")


@router.get(
    "/v1/jobs/{job_id}/export",
    response_class=Response,
    operation_id="exportJob",
    summary="The allocation in another tool's language",
    description="Targets whose export holds the model's weights need the model: use "
    "`mpsearch export` on the downloaded allocation. A target that cannot express the allocation "
    "is a problem that names layers and options.",
    responses=file_answer("*/*", "The file for that tool."),
)
async def export_job(
    job: OwnJob,
    service: TheService,
    to: Annotated[str, Query(min_length=1, max_length=100, description="see `mpsearch export`")],
) -> Response:
    """Write the allocation for another tool."""
    artifact = artifact_of(job, "allocation.json")
    path = await service.call(service.blobs.local_path, artifact.sha256)
    allocation = await service.call(Allocation.load, path)
    made = await service.call(render, allocation, to)
    headers = {"Content-Disposition": f'attachment; filename="{made.name}"'}
    return Response(made.content, 200, headers, made.media_type)


async def _file(request: Request, service: Service, job: Job, name: str) -> Response:
    artifact = artifact_of(job, name)
    shown = artifact.media_type.partition(";")[0] in {"text/html", "image/png"}
    place = "inline" if shown else "attachment"
    headers = {
        "Content-Security-Policy": PAGE_POLICY,
        # Names are the service's own, plain words; nothing of them needs quoting.
        "Content-Disposition": f'{place}; filename="{job.id}-{artifact.name}"',
    }
    return await artifact_answer(request, service, artifact, headers=headers)


async def _sources(service: Service, job: Job) -> dict[str, str]:
    """Fetch scores and prices of a job, as files that a solver reads."""
    names = {"profile": "profile.json", "costs": "costs.json"}
    artifact_of(job, "allocation.json")
    return {
        kind: str(await service.call(service.blobs.local_path, artifact_of(job, name).sha256))
        for kind, name in names.items()
    }
