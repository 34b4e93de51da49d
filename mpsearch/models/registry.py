"""Model and data specs: the strings that name a model or a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, DependencyError, ModelError, UnknownNameError
from mpsearch.models.dataset import DataSet
from mpsearch.models.digits import digits, digits_resnet

__all__ = ["ModelLike", "as_data", "as_model", "known_data", "known_models", "on_device"]

ModelLike = str | nn.Module

_MODELS: dict[str, Callable[[], nn.Module]] = {"digits-resnet": digits_resnet}
_DATA: dict[str, Callable[[], DataSet]] = {"digits": digits}


def known_models() -> list[str]:
    """List the bundled models.

    Returns:
        Their names.
    """
    return sorted(_MODELS)


def known_data() -> list[str]:
    """List the bundled data sets.

    Returns:
        Their names.
    """
    return sorted(_DATA)


def as_model(model: ModelLike) -> tuple[str, nn.Module]:
    """Turn what the caller gave into a model and a name to report.

    Args:
        model: A spec such as `digits-resnet`, or a live module.

    Returns:
        The name and the module; a live module is passed through, not copied.

    Raises:
        UnknownNameError: No bundled model has this name.
        ModelError: Not a module.
    """
    if isinstance(model, str):
        if model not in _MODELS:
            raise UnknownNameError("model", model, _MODELS)
        return model, _MODELS[model]()
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module or a name, not {type(model).__name__}")
    return type(model).__name__, model


def on_device(model: nn.Module, device: str) -> nn.Module:
    """Give a model on a device, leaving the caller's where it is.

    Args:
        model: The model.
        device: Such as `cpu`, `cuda` or `cuda:1`.

    Returns:
        The model itself if it is there already, a copy otherwise.

    Raises:
        DependencyError: torch finds no such device.
    """
    try:
        wanted = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise DependencyError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    if all(tensor.device == wanted for tensor in model.state_dict().values()):
        return model
    return copy.deepcopy(model).to(wanted)


def as_data(data: str | DataSet | Tensor | Iterable[Any]) -> DataSet:
    """Turn what the caller gave into a data set.

    Args:
        data: A spec such as `digits`; a DataSet; inputs; `(inputs, targets)`; or an iterable of
            such batches, a DataLoader for example, which is read once into memory.

    Returns:
        The data set.

    Raises:
        UnknownNameError: No bundled data set has this name.
        DataError: Empty, non-finite, or not made of tensors.
    """
    if isinstance(data, DataSet):
        return data
    if isinstance(data, str):
        if data not in _DATA:
            raise UnknownNameError("data set", data, _DATA)
        return _DATA[data]()
    if isinstance(data, Tensor):
        return DataSet("inputs", data)
    if _is_batch(data):
        return DataSet("inputs", data[0], data[1])
    return _gathered(data)


def _is_batch(data: object) -> TypeGuard[tuple[Tensor, Tensor | None]]:
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and isinstance(data[0], Tensor)
        and isinstance(data[1], (Tensor, type(None)))
    )


def _gathered(batches: Iterable[Any]) -> DataSet:
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    for batch in batches:
        if isinstance(batch, Tensor):
            inputs.append(batch)
        elif _is_batch(batch) and batch[1] is not None:
            inputs.append(batch[0])
            targets.append(batch[1])
        else:
            raise DataError(
                f"a batch must be a tensor or (inputs, targets), not {type(batch).__name__}"
            )
    if not inputs:
        raise DataError("the data set is empty: it gave no batch")
    if targets and len(targets) != len(inputs):
        raise DataError("some batches have targets and some have none")
    largest = max(len(batch) for batch in inputs)
    return DataSet(
        "batches", torch.cat(inputs), torch.cat(targets) if targets else None, batch_size=largest
    )
