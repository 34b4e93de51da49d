"""Model and data specs: the strings that name a model or a data set."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, DependencyError, InputError, ModelError, UnknownNameError
from mpsearch.models.dataset import DataSet
from mpsearch.models.digits import digits, digits_resnet
from mpsearch.models.named import NamedModel

__all__ = [
    "ModelLike",
    "NamedModel",
    "as_data",
    "as_model",
    "known_data",
    "known_models",
    "on_device",
]

ModelLike = str | nn.Module | NamedModel

_MODELS: dict[str, Callable[[], nn.Module]] = {"digits-resnet": digits_resnet}
_DATA: dict[str, Callable[[], DataSet]] = {"digits": digits}


_FACTORY_HINT = "package.module:factory calls a function of yours"


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


def as_model(model: ModelLike) -> NamedModel:
    """Turn what the caller gave into a model and a name to report.

    Args:
        model: A spec: `digits-resnet`, or `package.module:factory`, which runs the user's own
            code; a live module; or one with a name.

    Returns:
        The model; a live module is passed through, not copied, and is called by its class.

    Raises:
        UnknownNameError: No bundled model has this name.
        ModelError: Not a module.
        InputError: The factory cannot be imported.
    """
    if isinstance(model, str):
        if model in _MODELS:
            return NamedModel(model, _MODELS[model]())
        if ":" not in model:
            raise UnknownNameError("model", model, _MODELS, hint=_FACTORY_HINT)
        made = _from_factory(model)
        if not isinstance(made, nn.Module):
            raise ModelError(f"{model} made a {type(made).__name__}, not a torch.nn.Module")
        return NamedModel(model, made)
    if isinstance(model, NamedModel):
        return model
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module or a name, not {type(model).__name__}")
    return NamedModel(type(model).__name__, model)


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
        data: A spec: `digits`, or `package.module:factory`; a DataSet; inputs;
            `(inputs, targets)`; or an iterable of such batches, a DataLoader for example, which
            is read once into memory.

    Returns:
        The data set.

    Raises:
        UnknownNameError: No bundled data set has this name.
        DataError: Empty, non-finite, or not made of tensors.
    """
    if isinstance(data, DataSet):
        return data
    if isinstance(data, str):
        if data in _DATA:
            return _DATA[data]()
        if ":" not in data:
            raise UnknownNameError("data set", data, _DATA, hint=_FACTORY_HINT)
        made = _from_factory(data)
        if isinstance(made, str):
            raise DataError(f"{data} made text, not data")
        return as_data(made)
    if isinstance(data, Tensor):
        return DataSet("inputs", data)
    if _is_batch(data):
        return DataSet("inputs", data[0], data[1])
    return _gathered(data)


def _from_factory(spec: str) -> Any:  # noqa: ANN401
    """Import and call `package.module:factory`; this runs the user's own code."""
    path, _, name = spec.partition(":")
    # Like `python -m`: the user's code is found from the folder they stand in.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import {name!r} from {path!r} for {spec!r}: {error}") from error
    if not callable(factory):
        raise InputError(f"{spec} is a {type(factory).__name__}, not a function that makes one")
    return factory()


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
    largest = max(1, *(len(batch) for batch in inputs))
    return DataSet(
        "batches", torch.cat(inputs), torch.cat(targets) if targets else None, batch_size=largest
    )
