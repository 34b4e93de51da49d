"""`/v1/uploads`: files in parts, which may be sent again from where they broke off."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mpsearch.schemas.uploads import Upload
from mpsearch_api.faults import StateError
from mpsearch_api.http.access import Reader, TheService, Writer, missing, view
from mpsearch_api.http.bodies import StrictRoute
from mpsearch_api.http.documented import COMMON, answers
from mpsearch_api.http.problems import ProblemResponse, located, problem
from mpsearch_api.http.receiving import chunks_of
from mpsearch_api.http.service import Service
from mpsearch_api.store.appending import Appending

__all__ = ["router"]

MOST_OFFSET = 2**63 - 1

router = APIRouter(tags=["uploads"], route_class=StrictRoute, responses=COMMON)

UploadId = Annotated[str, Path(description="id of an upload")]
_OFFSET = {
    "Upload-Offset": {"description": "bytes received and kept", "schema": {"type": "integer"}}
}


class NewUpload(BaseModel):
    """A file to be sent."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"size": 1024}})

    size: int = Field(ge=0, le=MOST_OFFSET, description="bytes")
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="of the content; other content is refused at the end",
    )


@router.post(
    "/v1/uploads",
    status_code=201,
    response_model=Upload,
    operation_id="createUpload",
    summary="Announce a file",
    responses={
        201: {
            "description": "Send the bytes with PATCH.",
            "headers": {
                "Location": {"description": "of the upload", "schema": {"type": "string"}},
                **_OFFSET,
            },
        },
        **answers(413, 415),
    },
)
async def create_upload(body: NewUpload, service: TheService, caller: Writer) -> Response:
    """Announce a file; its bytes count against the quota from now on."""
    settings = service.settings
    if body.size > settings.upload_bytes:
        raise HTTPException(
            413, f"a file of {body.size:,} bytes; at most {settings.upload_bytes:,} are taken"
        )
    found = await service.write(
        service.store.uploads.create,
        caller.tenant,
        body.size,
        body.sha256,
        most_bytes=settings.stored_bytes,
    )
    if not body.size:
        found = await _finished(service, caller.tenant, found)
    headers = {"Location": f"/v1/uploads/{found.id}", "Upload-Offset": str(found.offset)}
    return Response(found.model_dump_json(), 201, headers, "application/json")


@router.get(
    "/v1/uploads/{upload_id}",
    response_model=Upload,
    operation_id="getUpload",
    summary="Where to go on",
    responses={200: {"description": "The upload.", "headers": _OFFSET}, **answers(404)},
)
async def get_upload(upload_id: UploadId, service: TheService, caller: Reader) -> Response:
    """Give an upload; `Upload-Offset` is where the next part begins."""
    found = await service.call(service.store.uploads.get, view(caller), upload_id)
    if found is None:
        raise missing("upload", upload_id)
    headers = {"Upload-Offset": str(found.offset), "Cache-Control": "no-store"}
    return Response(found.model_dump_json(), 200, headers, "application/json")


@router.patch(
    "/v1/uploads/{upload_id}",
    status_code=204,
    operation_id="sendPart",
    summary="Send bytes",
    description="Appends the body at `Upload-Offset`, which must be where the upload goes on; "
    "otherwise 409 and the right offset. What came before a broken connection is kept. The part "
    "that completes the file is answered when its hash has been checked.",
    responses={
        204: {"description": "Kept.", "headers": _OFFSET},
        **answers(404, 408, 409, 415),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def send_part(
    request: Request,
    upload_id: UploadId,
    service: TheService,
    caller: Writer,
    upload_offset: Annotated[int, Header(ge=0, le=MOST_OFFSET, description="bytes sent before")],
) -> Response:
    """Append bytes to an upload."""
    check_octets(request)
    tenant = view(caller)
    uploads = service.store.uploads
    found = await service.call(uploads.get, tenant, upload_id)
    if found is None:
        raise missing("upload", upload_id)
    if found.complete or found.offset != upload_offset:
        return _elsewhere(request, found)
    try:
        part = await service.call(
            uploads.appending, tenant, upload_id, upload_offset, service.blobs.parts
        )
        try:
            await _written(request, service, part)
        finally:
            await service.write(part.close)
    except StateError as error:
        # Such as another try of the same part, which was quicker, perhaps on another server.
        found = await service.call(uploads.get, tenant, upload_id)
        if found is None:
            raise missing("upload", upload_id) from error
        return _elsewhere(request, found, str(error))
    if part.offset == found.size:
        found = await _finished(service, tenant, found)
    return Response(status_code=204, headers={"Upload-Offset": str(part.offset)})


@router.delete(
    "/v1/uploads/{upload_id}",
    status_code=204,
    operation_id="deleteUpload",
    summary="Give an upload up",
    responses=answers(404),
)
async def delete_upload(upload_id: UploadId, service: TheService, caller: Writer) -> Response:
    """Forget an upload and its bytes; what was made from it stays."""
    delete = service.store.uploads.delete
    if not await service.write(delete, view(caller), upload_id, service.blobs.parts):
        raise missing("upload", upload_id)
    return Response(status_code=204)


def check_octets(request: Request) -> None:
    """Refuse a body that does not say that it is plain bytes.

    Args:
        request: The request.

    Raises:
        HTTPException: 415, another media type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {"application/octet-stream", "application/offset+octet-stream"}:
        raise HTTPException(415, f"the Content-Type must be application/octet-stream, not {kind!r}")


async def _written(request: Request, service: Service, part: Appending) -> None:
    async with aclosing(chunks_of(request)) as chunks:
        try:
            async for chunk in chunks:
                await service.write(part.write, chunk)
        except ClientDisconnect:
            return  # what came is kept; nobody is there to be told


async def _finished(service: Service, tenant: str | None, upload: Upload) -> Upload:
    uploads = service.store.uploads
    await service.write(uploads.finish, tenant, upload.id, service.blobs)
    return await service.call(uploads.get, tenant, upload.id) or upload


def _elsewhere(request: Request, upload: Upload, why: str | None = None) -> Response:
    detail = why or f"upload {upload.id} goes on at {upload.offset}"
    if why is None and upload.complete:
        detail = f"upload {upload.id} is complete"
    found = located(problem(409, detail, title="Not at this offset"), request)
    return ProblemResponse(found, {"Upload-Offset": str(upload.offset)})
