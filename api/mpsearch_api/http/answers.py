"""Answers with an ETag, answers from stored bytes, and the answer that nothing has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mpsearch.schemas.jobs import Artifact, Job
from mpsearch_api.faults import StateError
from mpsearch_api.http.service import Service

__all__ = ["artifact_answer", "artifact_of", "etag_of", "json_answer", "matches"]


def etag_of(content: bytes) -> str:
    """Name a content; weak, since it may be sent compressed or not.

    Args:
        content: The bytes.

    Returns:
        An entity tag.
    """
    return f'W/"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'


def matches(request: Request, tag: str) -> bool:
    """Tell whether the caller has this content already (RFC 9110, 13.1.2, weak comparison).

    Args:
        request: With `If-None-Match` or without.
        tag: Of the content.

    Returns:
        Whether a 304 is the answer.
    """
    given = ",".join(request.headers.getlist("if-none-match"))
    known = {part.strip().removeprefix("W/") for part in given.split(",")}
    return "*" in known or tag.removeprefix("W/") in known


def json_answer(
    request: Request,
    content: BaseModel | bytes,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer a GET with JSON and an ETag, or 304.

    Args:
        request: The request.
        content: A model, or JSON.
        status: HTTP status.
        headers: More headers.

    Returns:
        The answer.
    """
    body = content if isinstance(content, bytes) else content.model_dump_json().encode()
    tag = etag_of(body)
    more = {"ETag": tag, "Cache-Control": "private, no-cache", **(headers or {})}
    if status == 200 and matches(request, tag):
        return Response(status_code=304, headers=more)
    return Response(body, status, more, "application/json")


def artifact_of(job: Job, name: str) -> Artifact:
    """Find a file that a job produced.

    Args:
        job: The job.
        name: Of the file.

    Returns:
        Its record.

    Raises:
        StateError: The job has no result, and why.
        HTTPException: 404, the job produced no such file.
    """
    for artifact in job.artifacts:
        if artifact.name == name:
            return artifact
    if job.status == "succeeded" or (job.ended and job.artifacts and name != "allocation.json"):
        known = ", ".join(artifact.name for artifact in job.artifacts)
        raise HTTPException(404, f"job {job.id} has no file {name[:80]!r}; it has: {known}")
    if job.failure is not None:
        raise StateError(f"job {job.id} failed ({job.failure.kind}): {job.failure.message}")
    if job.ended:
        raise StateError(f"job {job.id} was cancelled and has no result")
    raise StateError(f"job {job.id} is {job.status}; its result comes when it has succeeded")


async def artifact_answer(
    request: Request,
    service: Service,
    artifact: Artifact,
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer with a stored file, or 304.

    Args:
        request: The request.
        service: Has the blobs.
        artifact: Which file.
        headers: More headers.

    Returns:
        The answer, streamed.
    """
    tag = f'W/"{artifact.sha256[:32]}"'
    more = {
        "ETag": tag,
        "Cache-Control": "private, max-age=3600, immutable",
        # A browser's cache is shared by whoever logs in with it.
        "Vary": "Authorization",
        "Repr-Digest": f"sha-256=:{_base64(artifact.sha256)}:",
        **(headers or {}),
    }
    if matches(request, tag):
        return Response(status_code=304, headers=more)
    chunks = service.blobs.read(artifact.sha256)
    # The first chunk is read before the status is sent, so that a missing file is still a 404.
    first = await service.call(lambda: next(chunks, b""))
    more["Content-Length"] = str(artifact.size)
    media_type = artifact.media_type
    return StreamingResponse(_from(first, chunks), headers=more, media_type=media_type)


def _from(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _base64(digest: str) -> str:
    import base64

    return base64.b64encode(bytes.fromhex(digest)).decode()
