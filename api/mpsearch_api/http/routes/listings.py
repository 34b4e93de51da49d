"""What there is to choose from: formats, estimators, solvers, architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from mpsearch.formats import families, get
from mpsearch.schemas.jobs import Page
from mpsearch.sensitivity import catalog
from mpsearch_api.http.access import Reader, TheService
from mpsearch_api.http.catalogue import SettingInfo
from mpsearch_api.http.documented import COMMON
from mpsearch_solvers import method_names

__all__ = ["router"]

SHAPE = (256, 1024)

router = APIRouter(tags=["catalogue"], responses=COMMON)


class FormatInfo(BaseModel):
    """A numeric format."""

    name: str
    family: str
    grammar: str = Field(description="how formats of this family are written")
    bits: float = Field(description="of one element")
    effective_bits: float = Field(description="per value of a 256 x 1024 weight, scales included")
    summary: str
    source: str


class EstimatorInfo(BaseModel):
    """An estimator of sensitivity."""

    name: str
    summary: str
    passes: str = Field(description="work on a model of L layers with B options")
    memory: str
    source: str
    scores_activations: bool
    settings: dict[str, SettingInfo] = Field(description="what a job's `settings` may set")


class SolverInfo(BaseModel):
    """A method of solving."""

    name: str
    summary: str = Field(examples=["chosen by the problem"])


class ArchitectureInfo(BaseModel):
    """A model that a job may name without an upload, or that uploaded weights may belong to."""

    name: str
    origin: Literal["bundled", "torchvision"]
    trained: bool = Field(description="whether it comes with trained weights")


def _page(items: Sequence[BaseModel], kind: type[BaseModel]) -> Response:
    page = Page[kind](items=list(items))  # type: ignore[valid-type]
    return Response(page.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/formats",
    response_model=Page[FormatInfo],
    operation_id="listFormats",
    summary="Numeric formats",
)
async def list_formats(_: Reader) -> Response:
    """List examples of every family of formats; an option is `w4a8` or `w:mxfp4/a:fp8_e4m3`."""
    found = []
    for family in families():
        for name in family.examples:
            spec = get(name)
            found.append(
                FormatInfo(
                    name=spec.name,
                    family=family.label,
                    grammar=family.grammar,
                    bits=spec.bits,
                    effective_bits=spec.effective_bits(SHAPE),
                    summary=spec.summary,
                    source=spec.source,
                )
            )
    return _page(found, FormatInfo)


@router.get(
    "/v1/estimators",
    response_model=Page[EstimatorInfo],
    operation_id="listEstimators",
    summary="Estimators",
)
async def list_estimators(_: Reader, service: TheService) -> Response:
    """List the estimators with their settings."""
    known = await service.catalogue.get()
    found = [
        EstimatorInfo(
            name=entry.name,
            summary=entry.summary,
            passes=entry.passes,
            memory=entry.memory,
            source=entry.source,
            scores_activations=entry.scores_activations,
            settings=dict(known.settings.get(entry.name, {})),
        )
        for entry in catalog.known()
    ]
    return _page(found, EstimatorInfo)


@router.get(
    "/v1/solvers",
    response_model=Page[SolverInfo],
    operation_id="listSolvers",
    summary="Methods of solving",
)
async def list_solvers(_: Reader) -> Response:
    """List the methods; `auto` chooses by the problem."""
    found = [SolverInfo(name=name, summary=_summary(name)) for name in method_names()]
    return _page(found, SolverInfo)


def _summary(name: str) -> str:
    from mpsearch_solvers.registry import AUTO, load_method

    if name == AUTO:
        return "Chooses a method by the problem."
    try:
        described = type(load_method(name)).__doc__
    except ImportError as error:
        return f"Not installed here: {error}"
    return (described or "").strip().partition("\n\n")[0].replace("\n", " ")


@router.get(
    "/v1/architectures",
    response_model=Page[ArchitectureInfo],
    operation_id="listArchitectures",
    summary="Models that need no upload",
)
async def list_architectures(
    _: Reader,
    service: TheService,
    origin: Annotated[Literal["bundled", "torchvision"] | None, Query()] = None,
) -> Response:
    """List bundled models, and networks of torchvision, whose weights are random or uploaded."""
    known = await service.catalogue.get()
    found = [ArchitectureInfo(name=n, origin="bundled", trained=True) for n in known.architectures]
    found += [
        ArchitectureInfo(name=f"torchvision:{name}", origin="torchvision", trained=False)
        for name in known.torchvision
    ]
    return _page([each for each in found if origin in {None, each.origin}], ArchitectureInfo)
