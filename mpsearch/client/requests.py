"""Job requests as callers may give them: whole, or in keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Execution, JobRequest, SolverSettings

__all__ = ["Budgets", "JobFields", "job_request", "made"]

Budgets = Mapping[str, str | float]
"""Resource -> amount, such as `{"weight_memory": "0.25x", "latency": "3 ms"}`."""

Model = TypeVar("Model", bound=BaseModel)


class JobFields(TypedDict, total=False):
    """What a job request says beside its model and data; see `JobRequest`."""

    options: Sequence[str]
    estimator: str
    settings: Mapping[str, bool | int | float | str]
    loss: str | None
    hardware: str | None
    batch: int | None
    context: int
    budget: Budgets
    goal: str | None
    max_drop: float | None
    refine: int | None
    groups: Sequence[str]
    groups_for: str | None
    fix: Mapping[str, str]
    skip: Sequence[str]
    samples: int | None
    memory_limit: str | int | None
    monotone: Literal["keep", "clamp"]
    verify: bool
    seed: int
    solver: SolverSettings | Mapping[str, Any]
    execution: Execution | Mapping[str, Any]
    label: str


def job_request(model: str, data: str, fields: JobFields) -> JobRequest:
    """Put a request together.

    Args:
        model: What the service is told about the model.
        data: The same of the data.
        fields: Everything else.

    Returns:
        The request.
    """
    return made(JobRequest, {"model": model, "data": data, **fields})


def made(kind: type[Model], fields: Mapping[str, Any]) -> Model:
    """Validate what a caller gave.

    Args:
        kind: What it should be.
        fields: What was given.

    Returns:
        The request.

    Raises:
        InputError: It does not fit; the message names every fault.
    """
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_url=False, include_context=False, include_input=False):
            place = ".".join(str(step) for step in fault["loc"])
            message = fault["msg"].removeprefix("Value error, ")
            faults.append(f"{place}: {message}" if place else message)
        raise InputError("; ".join(faults)) from error
