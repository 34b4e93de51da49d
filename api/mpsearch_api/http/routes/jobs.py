"""`/v1/jobs`: submit, list, read, cancel, delete."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from mpsearch.schemas.jobs import Job, JobRequest, JobStatus, Page
from mpsearch.schemas.problems import FieldProblem
from mpsearch_api.http.access import JobId, Reader, TheService, Writer, missing, view
from mpsearch_api.http.answers import json_answer
from mpsearch_api.http.bodies import StrictRoute
from mpsearch_api.http.documented import COMMON, answers
from mpsearch_api.http.problems import ProblemResponse, located, problem
from mpsearch_api.http.submission import FieldError, Submitter, check_job
from mpsearch_api.store.ids import is_id

__all__ = ["router"]

LONGEST_WAIT = 60.0
POLL_AFTER = {"queued": "1", "running": "2"}

router = APIRouter(tags=["jobs"], route_class=StrictRoute, responses=COMMON)

_EXAMPLE = {
    "model": "digits-resnet",
    "data": "digits",
    "options": ["w2a8", "w4a8", "w8a8"],
    "estimator": "measured_loss",
    "budget": {"weight_memory": "0.12x"},
    "verify": True,
}
_ETAG = {"ETag": {"description": "of this state of the job", "schema": {"type": "string"}}}
_LOCATION = {
    "Location": {"description": "path of the job", "schema": {"type": "string"}},
    "Retry-After": {
        "description": "seconds until a look is worth it",
        "schema": {"type": "string"},
    },
}


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=Job,
    operation_id="submitJob",
    summary="Submit a search",
    description="Queue a search of model, data, options, estimator, hardware and budgets. The "
    "request is checked whole before it is queued; what only loading the model can tell fails the "
    "job with the kind `bad_input`.",
    responses={
        202: {"description": "Queued.", "headers": _LOCATION},
        200: {
            "model": Job,
            "description": "This Idempotency-Key submitted the same job before; here it is.",
            "headers": _LOCATION,
        },
        **answers(409, 413, 415),
    },
    openapi_extra={
        "requestBody": {
            "content": {"application/json": {"example": _EXAMPLE}},
        }
    },
)
async def submit_job(
    request: Request,
    job: JobRequest,
    service: TheService,
    caller: Writer,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x20-\x7e]+$",
            description="the same key and body submit once, however often they are sent",
        ),
    ] = None,
) -> Response:
    """Queue a search of model, data, options, estimator, hardware and budgets."""
    refusal = await _refusal(request, job, service, caller)
    if refusal is not None:
        return refusal
    found, new = await service.write(
        service.store.jobs.submit,
        caller.tenant,
        job,
        idempotency_key=idempotency_key,
        most_open=service.settings.open_jobs,
    )
    request.scope["state"]["job"] = found.id
    headers = {
        "Location": f"/v1/jobs/{found.id}",
        "Retry-After": POLL_AFTER.get(found.status, "0"),
    }
    return json_answer(request, found, status=202 if new else 200, headers=headers)


async def _refusal(
    request: Request, job: JobRequest, service: TheService, caller: Writer
) -> Response | None:
    known = await service.catalogue.get()
    submitter = Submitter(
        lambda name: service.store.catalog.get_stored(caller.tenant, name),
        trusted="trusted" in caller.scopes,
    )
    try:
        await service.check(check_job, job, known, submitter, service.settings)
    except FieldError as error:
        found = problem(
            422,
            f"{error.pointer}: {error}",
            title="Input cannot be used",
            errors=[FieldProblem(pointer=error.pointer, detail=str(error))],
        )
        return ProblemResponse(located(found, request))
    return None


@router.get(
    "/v1/jobs",
    response_model=Page[Job],
    operation_id="listJobs",
    summary="List jobs, newest first",
)
async def list_jobs(
    service: TheService,
    caller: Reader,
    status: Annotated[JobStatus | None, Query(description="only those")] = None,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`next` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Give a page of jobs; jobs submitted meanwhile do not shift what follows a cursor."""
    page = await service.call(
        service.store.jobs.page, view(caller), status=status, cursor=cursor, limit=limit
    )
    return Response(page.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/jobs/{job_id}",
    response_model=Job,
    operation_id="getJob",
    summary="Read a job, or wait for it",
    responses={
        200: {"description": "The job as it stands.", "headers": _ETAG},
        304: {"description": "Nothing changed since the ETag in If-None-Match."},
        **answers(404),
    },
)
async def get_job(
    request: Request,
    job_id: JobId,
    service: TheService,
    caller: Reader,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=LONGEST_WAIT,
            description="seconds to wait: until the job has ended or, with If-None-Match, changed",
        ),
    ] = 0,
) -> Response:
    """Give a job's status, stage, progress and, once ended, failure or artifacts."""
    if wait:
        request.scope["state"]["waits"] = True
    over = time.monotonic() + wait
    tenant = view(caller)
    while True:
        # In this order: a change between the two ends the wait at once.
        version = 0
        if wait and is_id("job", job_id):
            found = await service.call(service.store.jobs.version, tenant, job_id)
            version = found or 0
        job = await service.call(service.store.jobs.get, tenant, job_id)
        if job is None:
            raise missing("job", job_id)
        answer = json_answer(request, job, headers=_poll_after(job))
        wanted = answer.status_code == 200 and "if-none-match" in request.headers
        left = over - time.monotonic()
        if wanted or job.ended or left <= 0 or service.closing:
            return answer
        with service.waiting(caller.tenant):
            await service.changed(job.id, version, left)


def _poll_after(job: Job) -> dict[str, str]:
    return {} if job.ended else {"Retry-After": POLL_AFTER[job.status]}


@router.post(
    "/v1/jobs/{job_id}/cancel",
    response_model=Job,
    operation_id="cancelJob",
    summary="Cancel a job",
    responses=answers(404),
)
async def cancel_job(job_id: JobId, service: TheService, caller: Writer) -> Response:
    """Cancel a queued or running job; its processes end within seconds. An ended job stays."""
    found = None
    if is_id("job", job_id):
        found = await service.write(service.store.jobs.cancel, view(caller), job_id)
    if found is None:
        raise missing("job", job_id)
    return Response(found.model_dump_json(), media_type="application/json")


@router.delete(
    "/v1/jobs/{job_id}",
    status_code=204,
    operation_id="deleteJob",
    summary="Delete an ended job",
    responses=answers(404, 409),
)
async def delete_job(job_id: JobId, service: TheService, caller: Writer) -> Response:
    """Remove an ended job with its events and files."""
    gone = is_id("job", job_id) and await service.write(
        service.store.jobs.delete, view(caller), job_id
    )
    if not gone:
        raise missing("job", job_id)
    return Response(status_code=204)
