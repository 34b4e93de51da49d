"""`/v1/jobs/{id}/events`: what happened to a job, as a page or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event

from mpsearch.schemas.jobs import Event, Page
from mpsearch_api.faults import QuotaError
from mpsearch_api.http.access import OwnJob, Reader, TheService, view
from mpsearch_api.http.documented import COMMON, answers
from mpsearch_api.http.service import Service

__all__ = ["router"]

BATCH = 500
HEARTBEAT_SECONDS = 10.0
RETRY_MILLISECONDS = 2000
MOST_ID = 2**31 - 1

router = APIRouter(tags=["jobs"], responses=COMMON)

_EXAMPLE = (
    "event: progress\n"
    'data: {"id":3,"time":"2026-01-01T00:00:00Z","kind":"progress","attempt":1,"status":null,'
    '"stage":"profile","progress":0.5,"message":"12 of 24 layers","eta_seconds":3.1,"data":{}}\n'
    "id: 3\n\n"
)


@router.get(
    "/v1/jobs/{job_id}/events",
    response_model=Page[Event],
    operation_id="getEvents",
    summary="What happened so far, or as it happens",
    description="Answers with a page of events or, to `Accept: text/event-stream`, with a stream "
    "of them that ends when the job has ended: `event` is the kind, `id` the event's id, `data` "
    "the event as JSON. After an interruption send the last id as `Last-Event-ID`; 204 says that "
    "nothing will follow. Comments are sent as heartbeats.",
    responses={
        200: {
            "description": "Events in order; `next` is the `after` of what follows.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE},
            },
        },
        204: {"description": "The stream is over: the job has ended and all was told."},
        **answers(404),
    },
)
async def get_events(
    request: Request,
    job: OwnJob,
    service: TheService,
    caller: Reader,
    after: Annotated[int, Query(ge=0, le=MOST_ID, description="only later ones")] = 0,
    limit: Annotated[int, Query(ge=1, le=BATCH)] = BATCH,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MOST_ID, description="as `after`, set by browsers")
    ] = None,
) -> Response:
    """Give a page of events, or stream them."""
    tenant = view(caller)
    after = after if last_event_id is None else last_event_id
    if not _wants_stream(request):
        events = await service.call(
            service.store.jobs.events, tenant, job.id, after=after, limit=limit + 1
        )
        more = len(events) > limit
        events = events[:limit]
        page = Page[Event](items=events, next=str(events[-1].id) if more else None)
        return Response(page.model_dump_json(), media_type="application/json")
    if job.ended and not await service.call(
        service.store.jobs.events, tenant, job.id, after=after, limit=1
    ):
        return Response(status_code=204)
    request.scope["state"]["waits"] = True
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    # Refused while a status can still be sent; the stream then holds a place of its own.
    with service.waiting(caller.tenant):
        told = _held(service, caller.tenant, _stream(service, tenant, job.id, after))
    return EventSourceResponse(told, headers=headers)


def _wants_stream(request: Request) -> bool:
    accepted = [
        kind.partition(";")[0].strip().lower()
        for kind in ",".join(request.headers.getlist("accept")).split(",")
    ]
    return "text/event-stream" in accepted and "application/json" not in accepted


async def _held(
    service: Service, tenant: str, stream: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """Hold a place for as long as the stream lasts."""
    with suppress(QuotaError), service.waiting(tenant):
        async for part in stream:
            yield part


async def _stream(
    service: Service, tenant: str | None, job: str, after: int
) -> AsyncIterator[bytes]:
    jobs = service.store.jobs
    yield format_sse_event(retry=RETRY_MILLISECONDS, comment=f"events of {job}")
    while not service.closing:
        events = await service.call(jobs.events, tenant, job, after=after, limit=BATCH)
        for event in events:
            after = event.id
            yield format_sse_event(
                event=event.kind, data_str=event.model_dump_json(), id=str(event.id)
            )
        if events:
            continue
        # Only then: an end that is read before the events could hide the last of them.
        found = await service.call(jobs.get, tenant, job)
        if found is None:
            return
        if found.ended and await service.call(jobs.version, tenant, job) == after:
            return
        if not await service.changed(job, after, HEARTBEAT_SECONDS):
            yield format_sse_event(comment="still here")
