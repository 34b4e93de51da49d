"""What every stage on a live model starts from: model, data, loss and quantizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.engine.marking import refuse_quantized
from mpsearch.formats import parse_option
from mpsearch.losses import Loss, LossFunction, as_loss, with_float_outputs
from mpsearch.models.dataset import DataSet
from mpsearch.models.layers import evaluation_mode, find_layers, forward, refuse_valueless
from mpsearch.models.registry import (
    ModelLike,
    NamedModel,
    as_data,
    as_model,
    check_fit,
    on_device,
)
from mpsearch.quantize import Quantizer
from mpsearch.ranges import activation_formats, known_ranges, saved_ranges, settles
from mpsearch.schemas import Allocation, Profile

__all__ = ["DataLike", "LossLike", "compared_by", "loaded", "quantizer_for"]

DataLike = str | DataSet | Tensor | Iterable[Any]
LossLike = str | LossFunction | Loss


def quantizer_for(module: nn.Module, answer: Profile | Allocation, data: DataSet) -> Quantizer:
    """Use the ranges that were calibrated before, or calibrate now.

    Args:
        module: The float model.
        answer: A profile or allocation that may carry ranges.
        data: What to calibrate on otherwise.

    Returns:
        A quantizer of the model.
    """
    saved = saved_ranges(answer)
    options = answer.options if isinstance(answer, Profile) else answer.layers.values()
    formats = activation_formats(map(parse_option, options))
    if settles(saved, formats):
        return Quantizer(module, saved)
    names = [layer.name for layer in find_layers(module, next(data.batches())).layers]
    return Quantizer(module, known_ranges(module, names, data.batches(), formats))


def compared_by(loss: LossLike | None, module: nn.Module, dataset: DataSet) -> tuple[Loss, DataSet]:
    """Settle the loss, and give it the float model's outputs where it compares with those.

    Args:
        loss: What the caller asked for; None: cross-entropy where the data has targets, else the
            divergence from the float model.
        module: The float model.
        dataset: The data.

    Returns:
        The loss, and the data with what the loss compares the output with.
    """
    if loss is None and dataset.targets is None:
        with torch.no_grad(), evaluation_mode(module):
            output = forward(module, dataset.inputs[:1])
        # Sequence models put the classes last, all others after the batch axis.
        loss = "token_kl_to_float" if output.ndim == 3 else "kl_to_float"
    criterion = as_loss("cross_entropy" if loss is None else loss)
    if criterion.target == "float_output":
        dataset = with_float_outputs(module, dataset)
    return criterion, dataset


def loaded(model: ModelLike, data: DataLike, device: str | None) -> tuple[NamedModel, DataSet]:
    """Load model and data, both onto the same device.

    Args:
        model: As the public functions take it.
        data: As the public functions take it.
        device: Where to compute; None: where the model is.

    Returns:
        The model with its name, and the data.
    """
    named = as_model(model)
    refuse_quantized(named.module)
    refuse_valueless(named.module)
    dataset = as_data(data, model=named)
    if device is not None:
        named = replace(named, module=on_device(named.module, device))
    first = next(named.module.parameters(), None)
    dataset = dataset.to(first.device if first is not None else "cpu")
    if named.limits is not None:
        check_fit(named, dataset)
    return named, dataset
