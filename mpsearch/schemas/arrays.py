"""Numpy arrays as pydantic fields: lists of lists in JSON, float64 or bool arrays in memory."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

__all__ = ["BoolMatrix", "FloatMatrix"]


def _to_floats(value: Any) -> NDArray[np.float64]:  # noqa: ANN401
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("must be a table of numbers with rows of equal length") from error
    return _two_dimensional(array)


def _to_bools(value: Any) -> NDArray[np.bool_]:  # noqa: ANN401
    array = np.asarray(value)
    if array.dtype != np.bool_:
        raise ValueError("must be a table of true and false with rows of equal length")
    return _two_dimensional(array)


def _two_dimensional(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 2:
        raise ValueError(f"must be a table of groups x options, not of shape {array.shape}")
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def _to_lists(array: NDArray[np.float64]) -> list[list[float | None]]:
    # JSON knows no NaN: a cell without a value is null, and reads back as NaN.
    return [[None if np.isnan(x) else float(x) for x in row] for row in array]


FloatMatrix = Annotated[
    NDArray[np.float64],
    PlainValidator(_to_floats),
    PlainSerializer(_to_lists, return_type=list[list[float | None]]),
    WithJsonSchema(
        {"type": "array", "items": {"type": "array", "items": {"type": ["number", "null"]}}}
    ),
]
"""Read-only float64 array, groups x options; null in JSON is NaN in memory."""

BoolMatrix = Annotated[
    NDArray[np.bool_],
    PlainValidator(_to_bools),
    PlainSerializer(lambda array: array.tolist(), return_type=list[list[bool]]),
    WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}}),
]
"""Read-only bool array, groups x options."""
