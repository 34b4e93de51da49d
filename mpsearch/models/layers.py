"""Finding the layers of a model that can be quantized, with their shapes and operation counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models.dataset import Batch
from mpsearch.models.dry_run import DryRun
from mpsearch.models.kinds import weight_sites
from mpsearch.models.layer import Layer
from mpsearch.models.running import evaluation_mode, forward
from mpsearch.models.weights_file import check_finite

__all__ = [
    "Layer",
    "LayerSurvey",
    "evaluation_mode",
    "find_layers",
    "forward",
    "refuse_valueless",
]


@dataclass(frozen=True)
class LayerSurvey:
    """What a dry forward pass found.

    Attributes:
        layers: Quantizable layers in execution order.
        fixed_parameters: Parameters that are not allocated: biases, norms, unsupported modules.
        notes: What was left out, in words; never silently.
    """

    layers: tuple[Layer, ...]
    fixed_parameters: int
    notes: tuple[str, ...]


def find_layers(model: nn.Module, batch: Batch) -> LayerSurvey:
    """Find the quantizable layers by one forward pass of a single input.

    Args:
        model: The model; unchanged afterwards.
        batch: A batch that the model accepts; its first input is used.

    Returns:
        The layers that ran, in order of their first execution.

    Raises:
        ModelError: No quantizable layer ran, a weight is NaN or infinite, has no value because it
            is on the meta device, or a module is lazy and was never run.
    """
    refuse_valueless(model)
    check_finite(dict(model.state_dict()), type(model).__name__)
    sites = weight_sites(model)
    dry_run = DryRun(model, sites)
    with torch.no_grad(), evaluation_mode(model), dry_run:
        forward(model, batch[0][:1])
    layers = tuple(dry_run.layers())
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layer that can be quantized: looked for convolutions, "
            "linear layers, embeddings, attention, recurrent layers and banks of experts"
            + "".join(f"; {note}" for note in sites.notes)
        )
    allocated = sum(layer.weights for layer in layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    # Parameters that are distinct objects over one storage are counted once, as they are stored.
    repeated = sum(
        (len({id(model.get_parameter(name)) for name in site.parameters}) - 1)
        * math.prod(site.layout.shape)
        for site in sites.by_name.values()
    )
    return LayerSurvey(layers, total - repeated - allocated, (*sites.notes, *dry_run.notes()))


def refuse_valueless(model: nn.Module) -> None:
    """Raise where a parameter has no values to compute with.

    Args:
        model: The model.

    Raises:
        ModelError: A parameter is lazy and was never run, or is on the meta device.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ModelError(
                f"parameter {name} is lazy and has no value yet; run the model once on an input"
            )
        if parameter.is_meta:
            raise ModelError(
                f"parameter {name} is on the meta device and has no values; load the weights first"
            )
