"""Rounding to signs with a fitted magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import BlockKernel, Params, check_floating, reject_nan

if TYPE_CHECKING:
    from mpsearch.formats.sign import Signs

__all__ = ["BinaryKernel", "TernaryKernel", "cast"]

TERNARY_THRESHOLD = 0.7
"""Share of the mean magnitude below which a weight becomes zero (Li et al. 2016, section 2.2)."""


def _mean(magnitudes: Tensor, counts: Tensor | int) -> Tensor:
    """Mean over a block; float64, in which no sum of float32 overflows."""
    return magnitudes.sum(1, keepdim=True, dtype=torch.float64) / counts


class BinaryKernel(BlockKernel):
    """Scale times sign, the scale being the mean magnitude: the least-squares choice."""

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale."""
        del whole
        return (_mean(blocks.abs(), counts).to(blocks.dtype),)

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return half the reach, the least-squares scale of evenly spread values."""
        return (torch.maximum(low.abs(), high.abs()) / 2,)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the scale where the value is at least zero, else its negative; NaN stays NaN."""
        del spare
        (scale,) = params
        torch.where(values < 0, -scale, scale, out=out)
        out.masked_fill_(torch.isnan(values), float("nan"))


class TernaryKernel(BlockKernel):
    """Scale times -1, 0 or 1, with the threshold and scale of Ternary Weight Networks."""

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale and the threshold."""
        del whole
        magnitudes = blocks.abs()
        threshold = (TERNARY_THRESHOLD * _mean(magnitudes, counts)).to(blocks.dtype)
        kept = magnitudes > threshold
        number = kept.sum(1, keepdim=True).clamp(min=1)
        scale = _mean(magnitudes.mul_(kept), number).to(blocks.dtype)
        return scale, threshold

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the least-squares scale and threshold of values spread evenly over the range."""
        reach = torch.maximum(low.abs(), high.abs())
        return reach * (2 / 3), reach / 3

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the sign times the scale where the magnitude is above the threshold, else zero."""
        scale, threshold = params
        torch.abs(values, out=spare)
        torch.sign(values, out=out)
        out.mul_(spare > threshold).mul_(scale)
        out.masked_fill_(torch.isnan(values), float("nan"))


def cast(spec: Signs, tensor: Tensor) -> Tensor:
    """Round to signs, unscaled; see `Signs.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    check_floating(tensor, spec.name)
    reject_nan(tensor, spec.name)
    source = tensor.detach()
    if spec.ternary:
        return source.round().clamp_(-1, 1)
    return torch.where(source < 0, -torch.ones_like(source), torch.ones_like(source))
