"""Gathering the batches that callers have: tensors, pairs, mappings, and loaders of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mpsearch.errors import DataError
from mpsearch.models.dataset import Batch, DataSet
from mpsearch.models.fields import FieldTensor, pack_fields

__all__ = ["gathered"]

TARGETS = ("labels", "label", "targets")
"""Names under which mappings carry what the output is compared with."""


def gathered(data: Tensor | Iterable[Any]) -> DataSet:
    """Read batches into memory, as one data set.

    Args:
        data: Inputs; `(inputs, targets)`; a mapping of the model's arguments to tensors, with the
            targets as `labels`; or an iterable of such batches. In a pair the inputs may be such a
            mapping, too.

    Returns:
        The data set.

    Raises:
        DataError: No batch, one of another form, or batches that do not fit together.
    """
    one = _batch(data)
    if one is not None:
        return DataSet("inputs", *one)
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise DataError(_WANTED.format(type(data).__name__))
    batches = []
    for each in data:
        batch = _batch(each)
        if batch is None:
            raise DataError(_WANTED.format(type(each).__name__))
        batches.append(batch)
    if not batches:
        raise DataError("the data set is empty: it gave no batch")
    inputs = [x for x, _ in batches]
    targets = [y for _, y in batches if y is not None]
    if targets and len(targets) != len(inputs):
        raise DataError("some batches have targets and some have none")
    largest = max(1, *map(len, inputs))
    joined = _joined(targets, "targets") if targets else None
    return DataSet("batches", _joined(inputs, "inputs"), joined, batch_size=largest)


_WANTED = (
    "a batch must be a tensor, (inputs, targets), or named tensors with the targets as 'labels', "
    "not {}"
)


def _batch(data: object) -> Batch | None:
    if isinstance(data, Tensor):
        return data, None
    if isinstance(data, Mapping):
        return _named(data)
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        return None
    inputs, targets = data
    if not isinstance(targets, (Tensor, type(None))):
        return None
    if isinstance(inputs, Tensor):
        return inputs, targets
    return (pack_fields(_tensors(inputs)), targets) if isinstance(inputs, Mapping) else None


def _named(data: Mapping[Any, Any]) -> Batch:
    tensors = _tensors(data)
    targets = [tensors.pop(name) for name in TARGETS if name in tensors]
    if len(targets) > 1:
        raise DataError(f"a batch has more than one of {', '.join(TARGETS)}")
    return pack_fields(tensors), targets[0] if targets else None


def _tensors(data: Mapping[Any, Any]) -> dict[str, Tensor]:
    for name, value in data.items():
        if not isinstance(value, Tensor):
            raise DataError(
                f"a batch must be made of tensors, and one has {str(name)[:40]!r} as "
                f"{type(value).__name__}"
            )
    return {str(name): value for name, value in data.items()}


def _joined(parts: list[Tensor], what: str) -> Tensor:
    forms = [
        part.fields if isinstance(part, FieldTensor) else tuple(part.shape[1:]) for part in parts
    ]
    for form in forms:
        if form != forms[0]:
            raise DataError(
                f"batches have {what} of different forms, {_shown(forms[0])} and {_shown(form)}; "
                "pad them to one length"
            )
    return torch.cat(parts)


def _shown(form: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, ('n', *form)))}]"
