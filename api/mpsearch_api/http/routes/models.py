"""`/v1/models` and `/v1/datasets`: uploaded files that jobs name by their ids."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Page
from mpsearch.schemas.uploads import Stored
from mpsearch_api.http.access import Reader, TheService, Writer
from mpsearch_api.http.documented import COMMON, answers
from mpsearch_api.http.storing import (
    LOCATION,
    Cursor,
    FromUpload,
    Label,
    Limit,
    deleted,
    one_of,
    page_of,
    stored_from,
    wanted_of,
)

__all__ = ["router"]

router = APIRouter(responses=COMMON)

_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _creation(description: str) -> dict[str, Any]:
    return {
        "status_code": 201,
        "response_model": Stored,
        "description": description,
        "responses": {
            201: {"description": "Stored.", "headers": LOCATION},
            **answers(404, 408, 409, 413, 415),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": FromUpload.model_json_schema(),
                        "example": {"upload": "upl_…", "name": "resnet.safetensors"},
                    },
                    **_BYTES,
                },
            }
        },
    }


_HOW = (
    "Either JSON that names a complete upload, or the bytes themselves as "
    "`application/octet-stream` with `?name=`. `X-Content-SHA256` or `Repr-Digest` is checked. "
)


@router.post(
    "/v1/models",
    tags=["models"],
    operation_id="storeModel",
    summary="Store a model",
    **_creation(
        _HOW + "Taken are `.safetensors` with an architecture, `.onnx`, and, with the scope "
        "`trusted`, `.pt2`; nothing is ever unpickled."
    ),
)
async def store_model(
    request: Request,
    service: TheService,
    caller: Writer,
    name: Label | None = None,
    format: Annotated[str | None, Query(max_length=20)] = None,  # noqa: A002 (the word of the query)
    architecture: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
) -> Response:
    """Store a model."""
    wanted = await wanted_of(request, service, name, format, architecture)
    if wanted.architecture is not None:
        (await service.catalogue.get()).check_architecture(wanted.architecture)
    return await stored_from(request, service, caller, "model", wanted)


@router.post(
    "/v1/datasets",
    tags=["datasets"],
    operation_id="storeDataset",
    summary="Store a data set",
    **_creation(
        _HOW + "Taken are `.npz` and `.safetensors` with arrays `inputs` and `targets`, a `.zip` "
        "of images, and `.txt`."
    ),
)
async def store_dataset(
    request: Request,
    service: TheService,
    caller: Writer,
    name: Label | None = None,
    format: Annotated[str | None, Query(max_length=20)] = None,  # noqa: A002 (the word of the query)
) -> Response:
    """Store a data set."""
    wanted = await wanted_of(request, service, name, format, None)
    if wanted.architecture is not None:
        raise InputError("a data set has no architecture")
    return await stored_from(request, service, caller, "dataset", wanted)


@router.get(
    "/v1/models",
    tags=["models"],
    response_model=Page[Stored],
    operation_id="listModels",
    summary="Uploaded models, newest first",
)
async def list_models(
    service: TheService, caller: Reader, cursor: Cursor = None, limit: Limit = 50
) -> Response:
    """List uploaded models; those that need no upload are under /v1/architectures."""
    page = await page_of(service, caller, "model", cursor, limit)
    return Response(page.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/datasets",
    tags=["datasets"],
    response_model=Page[Stored],
    operation_id="listDatasets",
    summary="Uploaded data sets, newest first",
)
async def list_datasets(
    service: TheService, caller: Reader, cursor: Cursor = None, limit: Limit = 50
) -> Response:
    """List uploaded data sets."""
    page = await page_of(service, caller, "dataset", cursor, limit)
    return Response(page.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/models/{model_id}",
    tags=["models"],
    response_model=Stored,
    operation_id="getModel",
    summary="An uploaded model",
    responses=answers(404),
)
async def get_model(
    model_id: Annotated[str, Path()], service: TheService, caller: Reader
) -> Response:
    """Give what is known of an uploaded model."""
    found = await one_of(service, caller, "model", model_id)
    return Response(found.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/datasets/{dataset_id}",
    tags=["datasets"],
    response_model=Stored,
    operation_id="getDataset",
    summary="An uploaded data set",
    responses=answers(404),
)
async def get_dataset(
    dataset_id: Annotated[str, Path()], service: TheService, caller: Reader
) -> Response:
    """Give what is known of an uploaded data set."""
    found = await one_of(service, caller, "dataset", dataset_id)
    return Response(found.model_dump_json(), media_type="application/json")


@router.delete(
    "/v1/models/{model_id}",
    tags=["models"],
    status_code=204,
    operation_id="deleteModel",
    summary="Delete an uploaded model",
    responses=answers(404),
)
async def delete_model(
    model_id: Annotated[str, Path()], service: TheService, caller: Writer
) -> Response:
    """Forget a model; jobs that have not loaded it yet will fail."""
    return await deleted(service, caller, "model", model_id)


@router.delete(
    "/v1/datasets/{dataset_id}",
    tags=["datasets"],
    status_code=204,
    operation_id="deleteDataset",
    summary="Delete an uploaded data set",
    responses=answers(404),
)
async def delete_dataset(
    dataset_id: Annotated[str, Path()], service: TheService, caller: Writer
) -> Response:
    """Forget a data set; jobs that have not loaded it yet will fail."""
    return await deleted(service, caller, "dataset", dataset_id)
