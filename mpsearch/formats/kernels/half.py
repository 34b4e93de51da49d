"""Rounding to 16-bit floats through torch's own types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels import minifloat
from mpsearch.formats.kernels.blocks import BlockKernel, Params, absmax, check_floating

if TYPE_CHECKING:
    from mpsearch.formats.base import Overflow
    from mpsearch.formats.half import Half

__all__ = ["HalfKernel", "cast"]


class HalfKernel(BlockKernel):
    """Convert to 16 bits and back; there is nothing to fit."""

    def __init__(self, spec: Half) -> None:
        self.spec = spec

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the largest magnitudes, which only show whether every value is finite."""
        del counts, whole
        return (absmax(blocks),)

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the largest magnitude; the rounding does not use it."""
        return (torch.maximum(low.abs(), high.abs()),)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest 16-bit floats, saturating."""
        del params, spare
        out.copy_(cast(self.spec, values, "saturate"))


def cast(spec: Half, tensor: Tensor, overflow: Overflow) -> Tensor:
    """Round to 16-bit floats; see `Half.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    check_floating(tensor, spec.name)
    if tensor.dtype == torch.float64:
        # torch goes through float32, which would round twice
        return minifloat.cast(spec.grid, tensor, overflow, spec.name)
    source = tensor.detach()
    if overflow == "saturate":
        source = source.clamp(-spec.top, spec.top)
    return source.to(torch.bfloat16 if spec.brain else torch.float16, copy=True).to(tensor.dtype)
