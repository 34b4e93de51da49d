"""Which tensors gradients are taken in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mpsearch.models.layers import Layer
from mpsearch.quantize import layer_weight

__all__ = ["differentiated", "layer_weights"]


def layer_weights(model: nn.Module, layers: Sequence[Layer]) -> list[Tensor]:
    """Collect the weights of layers.

    Args:
        model: The model.
        layers: The layers.

    Returns:
        Their weights, in the same order; the model's own tensors.
    """
    return [layer_weight(model, layer.name) for layer in layers]


@contextmanager
def differentiated(weights: Sequence[Tensor]) -> Iterator[None]:
    """Take gradients in these weights, frozen or not, and leave their flags as they were.

    Args:
        weights: Tensors to differentiate in.

    Yields:
        Nothing; gradients are enabled inside.
    """
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
