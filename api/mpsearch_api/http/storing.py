"""Storing files that jobs may name by an id, whichever kind they are."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Page
from mpsearch.schemas.uploads import Stored, StoredKind
from mpsearch_api.blobs.port import Blob
from mpsearch_api.http.access import missing, view
from mpsearch_api.http.bodies import parsed_body
from mpsearch_api.http.formats import check_beginning, check_start, format_of
from mpsearch_api.http.receiving import received_blob
from mpsearch_api.http.service import Service
from mpsearch_api.store.ids import is_id
from mpsearch_api.store.keys import Principal

__all__ = [
    "LOCATION",
    "Cursor",
    "FromUpload",
    "Label",
    "Limit",
    "deleted",
    "one_of",
    "page_of",
    "recorded",
    "stored_from",
    "wanted_of",
]

PREFIXES: dict[StoredKind, str] = {"model": "mdl", "dataset": "dat", "hardware": "hw"}
Label = Annotated[
    str,
    Query(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="file name; its suffix says what the file is",
    ),
]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=200)]
LOCATION = {"Location": {"description": "path of the object", "schema": {"type": "string"}}}


class FromUpload(BaseModel):
    """What a complete upload is to become."""

    model_config = ConfigDict(extra="forbid")

    upload: str = Field(min_length=1, max_length=64, description="id of a complete upload")
    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
    format: str | None = Field(default=None, max_length=20, description="default: name's suffix")
    architecture: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="for weights: what they belong to, such as torchvision:resnet18",
    )


async def wanted_of(
    request: Request,
    service: Service,
    name: str | None,
    form: str | None,
    architecture: str | None,
) -> FromUpload:
    """Read what is to be stored: from a JSON body, or from the query beside the bytes themselves.

    Args:
        request: The request; bytes are left unread.
        service: The service.
        name: From the query.
        form: From the query.
        architecture: From the query.

    Returns:
        What is wanted; its `upload` is "-" where the body is the file.

    Raises:
        HTTPException: 415, neither JSON nor bytes.
        InputError: Bytes without a name.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/octet-stream":
        if name is None:
            raise InputError("?name= is missing; its suffix says what the file is")
        return FromUpload(upload="-", name=name, format=form, architecture=architecture)
    if kind != "application/json":
        raise HTTPException(
            415, f"send application/json or application/octet-stream, not {kind[:80]!r}"
        )
    return await parsed_body(request, FromUpload, service.settings.body_bytes)


async def stored_from(
    request: Request, service: Service, caller: Principal, kind: StoredKind, wanted: FromUpload
) -> Response:
    """Store an upload, or the body, as an object of a kind.

    Args:
        request: The request.
        service: The service.
        caller: Who asks.
        kind: What it is to be.
        wanted: What the caller said of it.

    Returns:
        The answer, 201.
    """
    trusted = "trusted" in caller.scopes
    form = format_of(kind, wanted.name, wanted.format, trusted=trusted)
    if wanted.upload == "-":
        most = await _room(service, caller.tenant)
        check = partial(check_start, form=form)
        blob = await received_blob(request, service, caller.tenant, most, check)
    else:
        blob = await _uploaded(service, caller.tenant, wanted.upload)
    path = await service.call(service.blobs.local_path, blob.sha256)
    await service.call(check_beginning, path, form)
    return await recorded(service, caller, kind, wanted, form, blob)


async def _uploaded(service: Service, tenant: str, upload: str) -> Blob:
    uploads = service.store.uploads
    if await service.call(uploads.get, tenant, upload) is None:
        raise missing("upload", upload)
    return await service.write(uploads.finish, tenant, upload, service.blobs)


async def _room(service: Service, tenant: str) -> int:
    settings = service.settings
    held = await service.call(service.store.catalog.bytes_stored, tenant)
    return max(0, min(settings.upload_bytes, settings.stored_bytes - held))


async def recorded(
    service: Service,
    caller: Principal,
    kind: StoredKind,
    wanted: FromUpload,
    form: str,
    blob: Blob,
) -> Response:
    """Record a blob as an object of a tenant.

    Args:
        service: The service.
        caller: Whose it is.
        kind: What it is.
        wanted: Its name and architecture.
        form: Its format.
        blob: Its bytes.

    Returns:
        The answer, 201.
    """
    found = await service.write(
        service.store.catalog.add_stored,
        caller.tenant,
        kind,
        wanted.name,
        form,
        wanted.architecture,
        blob,
        most_bytes=service.settings.stored_bytes,
    )
    place = "hardware" if kind == "hardware" else f"{kind}s"
    headers = {"Location": f"/v1/{place}/{found.id}"}
    return Response(found.model_dump_json(), 201, headers, "application/json")


async def page_of(
    service: Service, caller: Principal, kind: StoredKind, cursor: str | None, limit: int
) -> Page[Stored]:
    """Read a page of a tenant's objects.

    Args:
        service: The service.
        caller: Who asks.
        kind: Which objects.
        cursor: `next` of the page before.
        limit: At most so many.

    Returns:
        The page.
    """
    return await service.call(
        service.store.catalog.page_stored, view(caller), kind, cursor=cursor, limit=limit
    )


async def one_of(service: Service, caller: Principal, kind: StoredKind, name: str) -> Stored:
    """Read one object of a tenant.

    Args:
        service: The service.
        caller: Who asks.
        kind: What it is.
        name: Its id.

    Returns:
        The object.

    Raises:
        missing: 404, there is none.
    """
    found = None
    if is_id(PREFIXES[kind], name):
        found = await service.call(service.store.catalog.get_stored, view(caller), name)
    if found is None:
        raise missing(kind, name)
    return found


async def deleted(service: Service, caller: Principal, kind: StoredKind, name: str) -> Response:
    """Delete an object of a tenant.

    Args:
        service: The service.
        caller: Who asks.
        kind: What it is.
        name: Its id.

    Returns:
        The answer, 204.

    Raises:
        missing: 404, there is none.
    """
    await one_of(service, caller, kind, name)
    if not await service.write(service.store.catalog.delete_stored, view(caller), name):
        raise missing(kind, name)
    return Response(status_code=204)
