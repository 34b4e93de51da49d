"""What a route is handed: the service, who asks, and whether they may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Path, Request
from starlette.exceptions import HTTPException

from mpsearch.schemas.jobs import Job
from mpsearch_api.faults import NotAllowedError
from mpsearch_api.http.service import Service
from mpsearch_api.store.ids import is_id
from mpsearch_api.store.keys import Principal, Scope

__all__ = [
    "Administrator",
    "JobId",
    "OwnJob",
    "Reader",
    "TheService",
    "Writer",
    "missing",
    "view",
]


async def the_service(request: Request) -> Service:
    """Give the service of the application that a request came to."""
    service: Service = request.app.state.service
    return service


def _with_scope(scope: Scope) -> Callable[[Request], object]:
    async def caller(request: Request) -> Principal:
        principal: Principal = request.state.principal
        if scope not in principal.scopes:
            if principal.open_mode:
                reason = f"open mode does not allow {scope!r}; make a key that does"
            else:
                reason = f"the key lacks the scope {scope!r}"
            raise NotAllowedError(reason)
        return principal

    return caller


TheService = Annotated[Service, Depends(the_service)]
Reader = Annotated[Principal, Depends(_with_scope("read"))]
Writer = Annotated[Principal, Depends(_with_scope("write"))]
Administrator = Annotated[Principal, Depends(_with_scope("admin"))]

JobId = Annotated[str, Path(description="id of a job", examples=["job_01j8x3m5kq2v7w9y4z6a8b0c2d"])]


def view(principal: Principal) -> str | None:
    """Say whose objects somebody sees.

    Args:
        principal: Who asks.

    Returns:
        The tenant; None, for all, to an administrator.
    """
    return None if "admin" in principal.scopes else principal.tenant


def missing(kind: str, name: str) -> HTTPException:
    """Say that there is no such object; another tenant's is told in the same words.

    Args:
        kind: Such as `job`.
        name: Its id, as given.

    Returns:
        The error to raise.
    """
    return HTTPException(404, f"there is no {kind} {name[:80]!r}")


async def own_job(job_id: JobId, service: TheService, caller: Reader) -> Job:
    """Read the job of a path, if the caller may see it.

    Args:
        job_id: From the path.
        service: The service.
        caller: Who asks.

    Returns:
        The job.

    Raises:
        missing: 404, there is none.
    """
    found = None
    if is_id("job", job_id):
        found = await service.call(service.store.jobs.get, view(caller), job_id)
    if found is None:
        raise missing("job", job_id)
    return found


OwnJob = Annotated[Job, Depends(own_job)]
