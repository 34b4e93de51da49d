"""`/v1/hardware`: shipped devices, and cost tables of one's own."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from mpsearch.hardware.device import Device, device, known_devices
from mpsearch.schemas.jobs import Page
from mpsearch.schemas.uploads import HardwareEntry, Stored
from mpsearch_api.http.access import Reader, TheService, Writer
from mpsearch_api.http.bodies import limited_body
from mpsearch_api.http.documented import COMMON, answers
from mpsearch_api.http.receiving import announced_digest, check_digest
from mpsearch_api.http.storing import (
    LOCATION,
    Cursor,
    FromUpload,
    Label,
    Limit,
    deleted,
    one_of,
    page_of,
    recorded,
)

__all__ = ["router"]

router = APIRouter(tags=["hardware"], responses=COMMON)

TABLE_TYPES = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/csv": "csv",
}


@router.post(
    "/v1/hardware",
    status_code=201,
    response_model=Stored,
    operation_id="storeHardware",
    summary="Store a cost table",
    description="The body is a cost table or a device, as `mpsearch hardware validate` checks it.",
    responses={
        201: {"description": "Stored.", "headers": LOCATION},
        **answers(413, 415, 504),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "application/yaml": {"schema": {"type": "string"}},
                "text/csv": {"schema": {"type": "string"}},
            },
        }
    },
)
async def store_hardware(
    request: Request, service: TheService, caller: Writer, name: Label | None = None
) -> Response:
    """Check and store a cost table."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TABLE_TYPES:
        raise HTTPException(415, f"a cost table is JSON, YAML or CSV, not {kind!r}")
    form = TABLE_TYPES[kind]
    digest = announced_digest(request)
    body = await limited_body(request, service.settings.body_bytes)
    task = {"task": "hardware", "format": form}
    await service.solver.run(task, body, tenant=caller.tenant)
    blob = await service.write(service.blobs.put, [body])
    check_digest(digest, blob.sha256)
    wanted = FromUpload(upload="-", name=name or f"table.{form}", format=form)
    return await recorded(service, caller, "hardware", wanted, form, blob)


@router.get(
    "/v1/hardware",
    response_model=Page[HardwareEntry],
    operation_id="listHardware",
    summary="Shipped devices, then uploaded tables, newest first",
)
async def list_hardware(
    service: TheService,
    caller: Reader,
    origin: Annotated[
        Literal["shipped", "uploaded"] | None, Query(description="only those")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """List what a job may name as its hardware; all shipped devices are on the first page."""
    entries: list[HardwareEntry] = []
    following = None
    if origin != "uploaded" and cursor is None:
        entries += [_shipped(device(name)) for name in known_devices()]
    if origin != "shipped":
        page = await page_of(service, caller, "hardware", cursor, limit)
        entries += [HardwareEntry(name=s.id, origin="uploaded", stored=s) for s in page.items]
        following = page.next
    found = Page[HardwareEntry](items=entries, next=following)
    return Response(found.model_dump_json(), media_type="application/json")


def _shipped(found: Device) -> HardwareEntry:
    return HardwareEntry(
        name=found.name, origin="shipped", summary=found.summary, resources=found.resources
    )


@router.get(
    "/v1/hardware/{name}",
    response_model=HardwareEntry,
    operation_id="getHardware",
    summary="A shipped device or an uploaded table",
    responses=answers(404),
)
async def get_hardware(
    name: Annotated[str, Path(description="of a shipped device, or an id")],
    service: TheService,
    caller: Reader,
) -> Response:
    """Give what is known of a device or table."""
    if name in known_devices():
        entry = _shipped(device(name))
    else:
        found = await one_of(service, caller, "hardware", name)
        entry = HardwareEntry(name=found.id, origin="uploaded", stored=found)
    return Response(entry.model_dump_json(), media_type="application/json")


@router.delete(
    "/v1/hardware/{name}",
    status_code=204,
    operation_id="deleteHardware",
    summary="Delete an uploaded cost table",
    responses=answers(404),
)
async def delete_hardware(
    name: Annotated[str, Path()], service: TheService, caller: Writer
) -> Response:
    """Forget an uploaded cost table; shipped devices stay."""
    return await deleted(service, caller, "hardware", name)
