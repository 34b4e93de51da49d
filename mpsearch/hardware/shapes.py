"""Shape keys: how a layer's shape is written in a cost table, and which keys must agree exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mpsearch.models.layer import Layer

__all__ = ["STRUCTURAL", "TIMED", "layer_keys", "shape_of", "structure"]

STRUCTURAL = (
    "kernel_depth",
    "kernel_height",
    "kernel_width",
    "stride_depth",
    "stride_height",
    "stride_width",
)
"""Keys that select another kernel altogether: costs are never carried from one value to another.
Whether `groups` is 1 is structural too; how many groups there are otherwise is a size."""

_AXES = ("depth", "height", "width")

TIMED = {
    "conv2d": (
        "in_channels",
        "out_channels",
        "groups",
        "kernel_height",
        "kernel_width",
        "stride_height",
        "stride_width",
        "out_height",
        "out_width",
    ),
    "linear": ("in_features", "out_features", "rows"),
}
"""Kind of layer -> the shape keys that a measured table has."""


def layer_keys(layer: Layer, batch: int) -> dict[str, int]:
    """Describe a layer by the shape keys of measured tables.

    Args:
        layer: A layer of one of the kinds in `TIMED`.
        batch: Inputs processed together.

    Returns:
        Key -> value.
    """
    shape = shape_of(layer, batch)
    return {key: shape[key] for key in TIMED[layer.kind]}


def shape_of(layer: Layer, batch: int = 1) -> dict[str, int]:
    """Describe a layer by all the shape keys that its kind has.

    Args:
        layer: The layer.
        batch: Inputs processed together.

    Returns:
        Key -> value. Every layer has `weights`, `macs` (of the batch) and `batch`; convolutions
        have channels, groups, kernel, stride, input and output sizes; linear layers and
        embeddings `in_features`, `out_features` and `rows` (vectors of the batch).
    """
    shape = {"weights": layer.weights, "macs": layer.macs * batch, "batch": batch}
    if layer.kind.startswith("conv") and len(layer.input_shape) >= 3:
        return shape | _convolution(layer)
    if layer.kind in {"linear", "embedding"}:
        rows = math.prod(layer.output_shape[:-1]) * batch
        outputs, inputs = layer.weight_shape[0], layer.weight_shape[-1]
        return shape | {"in_features": inputs, "out_features": outputs, "rows": rows}
    return shape


def _convolution(layer: Layer) -> dict[str, int]:
    spatial = len(layer.weight_shape) - 2
    sizes_in, sizes_out = layer.input_shape[-spatial:], layer.output_shape[-spatial:]
    channels = layer.input_shape[-spatial - 1]
    transposed = layer.kind.startswith("convtranspose")
    shape = {
        "in_channels": channels,
        "out_channels": layer.output_shape[-spatial - 1],
        "groups": max(1, channels // layer.weight_shape[1]),
    }
    for position, axis in enumerate(_AXES[-spatial:]):
        kernel, entered, left = (
            layer.weight_shape[2 + position],
            sizes_in[position],
            sizes_out[position],
        )
        shape[f"kernel_{axis}"] = kernel
        shape[f"in_{axis}"] = entered
        shape[f"out_{axis}"] = left
        if len(layer.stride) == spatial:
            shape[f"stride_{axis}"] = layer.stride[position]
        else:
            larger, smaller = (left, entered) if transposed else (entered, left)
            shape[f"stride_{axis}"] = _stride(larger, smaller, kernel)
    return shape


def _stride(entered: int, left: int, kernel: int) -> int:
    """Return the smallest stride that explains the sizes with a padding below the kernel."""
    for stride in range(1, entered + 1):
        sizes = ((entered + 2 * padding - kernel) // stride + 1 for padding in range(kernel))
        if left in sizes:
            return stride
    return max(1, round(entered / max(1, left)))


def structure(shape: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Pick what must agree for two shapes to run the same kernel.

    Args:
        shape: Shape keys.

    Returns:
        Structural keys with their values, sorted.
    """
    fixed = {key: shape[key] for key in STRUCTURAL if key in shape}
    if "groups" in shape:
        fixed["grouped"] = int(shape["groups"] != 1)
    return tuple(sorted(fixed.items()))
