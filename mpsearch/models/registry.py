"""What a caller gives as model or data, turned into a live model and a data set."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, DependencyError, InputError, ModelError
from mpsearch.models import (  # noqa: F401 - importing them registers their specs
    data_files,
    digits,
    efficientnet,
    exported,
    images_folder,
    onnx_models,
    synthetic,
    text_file,
    timm_models,
    torchvision_models,
    transformers_models,
)
from mpsearch.models.batches import gathered
from mpsearch.models.data_specs import known_data, load_data_spec
from mpsearch.models.dataset import DataSet
from mpsearch.models.named import NamedModel
from mpsearch.models.running import first_output
from mpsearch.models.specs import LOCAL, SpecPolicy, known_architectures, load_spec

__all__ = [
    "ModelLike",
    "NamedModel",
    "as_data",
    "as_model",
    "check_fit",
    "known_data",
    "known_models",
    "on_device",
]

ModelLike = str | nn.Module | NamedModel


def known_models() -> list[str]:
    """List the models that have a name, and the forms that other specs take.

    Returns:
        The names, then the forms.
    """
    return known_architectures()


def as_model(model: ModelLike, policy: SpecPolicy = LOCAL) -> NamedModel:
    """Turn what the caller gave into a model and a name to report.

    Args:
        model: A spec (see `mpsearch.models.specs`), a live module, or one with a name.
        policy: What a spec may do.

    Returns:
        The model; a live module is passed through, not copied, and is called by its class.

    Raises:
        ModelError: Not a module.
    """
    if isinstance(model, str):
        return load_spec(model, policy)
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
        known = device.partition(":")[0] in {"cpu", "cuda", "mps", "xpu", "meta"}
        kind = DependencyError if known else InputError
        raise kind(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if all(tensor.device == wanted for tensor in model.state_dict().values()):
        return model
    return copy.deepcopy(model).to(wanted)


def as_data(
    data: str | DataSet | Tensor | Iterable[Any],
    policy: SpecPolicy = LOCAL,
    *,
    model: NamedModel | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> DataSet:
    """Turn what the caller gave into a data set.

    Args:
        data: A spec (see `mpsearch.models.data_specs`); a DataSet; or what
            `mpsearch.models.batches` gathers: inputs, `(inputs, targets)`, named inputs, or an
            iterable of such batches, a DataLoader for example, which is read once into memory.
        policy: What a spec may do.
        model: The model that the data is for; `synthetic` data is made from it.
        samples: Draw so many of the calibration inputs; None for all.
        seed: Seed of the draw and of synthetic data.

    Returns:
        The data set.
    """
    made = load_data_spec(data, policy, model, seed) if isinstance(data, str) else data
    found = made if isinstance(made, DataSet) else gathered(made)
    return found if samples is None else found.sample(samples, seed)


def check_fit(named: NamedModel, data: DataSet) -> None:
    """Run one input through the model, to say early and clearly where the two do not fit.

    Args:
        named: The model.
        data: The data.

    Raises:
        DataError: The model refuses the input, a label is beyond its classes, or a batch would pass
            the limits of a model out of a file.
    """
    try:
        output = first_output(named, data.inputs[:1], data.batch_size)
    except DataError as error:
        wanted = f"; {named.name} takes {named.inputs}" if named.inputs else ""
        wanted += "".join(f"; {note}" for note in named.notes if named.limits is not None)
        raise DataError(f"data {data.name!r} does not fit the model: {error}{wanted}") from error
    targets = data.targets
    if targets is None or targets.is_floating_point() or output.ndim != 2 or targets.ndim != 1:
        return
    largest, classes = int(targets.max()), output.shape[1]
    if largest >= classes:
        raise DataError(
            f"data {data.name!r} has the label {largest}, but {named.name} has {classes} classes, "
            "numbered from 0"
        )
