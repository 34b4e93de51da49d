"""Ranges that leave outliers out: percentiles, and the search for the least squared error."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import BlockKernel, Params, ends
from mpsearch.formats.kernels.minifloat import binade

if TYPE_CHECKING:
    from mpsearch.formats.granularity import Clip

__all__ = ["CLIP_RATIOS", "clipped"]

CLIP_RATIOS = tuple(step / 40 for step in range(40, 7, -1))
"""Shares of the full range that the search tries: 1 down to 0.2 in steps of 0.025."""


def clipped(kernel: BlockKernel, clip: Clip | None) -> BlockKernel:
    """Return the kernel with its ranges clipped, or the kernel itself where nothing is clipped."""
    if clip is None:
        return kernel
    if clip.percentile is None:
        return LeastErrorKernel(kernel)
    return PercentileKernel(kernel, clip.percentile)


class LeastErrorKernel(BlockKernel):
    """Tries shares of each block's range and keeps the one of least squared error."""

    def __init__(self, inner: BlockKernel) -> None:
        self.inner = inner
        self.wide = inner.wide

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the inner kernel's parameters at the best ratio of each block."""
        del counts, whole
        low, high = ends(blocks)
        # squares of values near either end of float32 leave its range: compare errors in units
        # of the block, of which a power of two changes no bit
        unit = torch.maximum(low.abs(), high.abs())
        shrink = 1 / binade(unit, torch.empty_like(unit)).clamp_(min=torch.finfo(unit.dtype).tiny)
        rounded, spare = torch.empty_like(blocks), torch.empty_like(blocks)
        best: Params = ()
        least = torch.full_like(low, float("inf"))
        for ratio in CLIP_RATIOS:
            params = self.inner.from_range(low * ratio, high * ratio)
            self.inner.round(blocks, params, rounded, spare)
            error = torch.sub(rounded, blocks, out=rounded).mul_(shrink)
            error = error.square_().sum(1, keepdim=True)
            if not best:
                best, least = params, error
                continue
            better = error < least
            least = torch.where(better, error, least)
            best = tuple(torch.where(better, n, o) for n, o in zip(params, best, strict=True))
        return best

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the inner kernel's parameters: a given range is not searched again."""
        return self.inner.from_range(low, high)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Round as the inner kernel does."""
        self.inner.round(values, params, out, spare)


def _rank(number: int, percentile: float) -> int:
    """Return ceil(percentile / 100 * number), at least 1, free of the rounding of floats."""
    return max(1, math.ceil(Fraction(repr(percentile)) * number / 100))


class PercentileKernel(BlockKernel):
    """Covers a share of each block's magnitudes."""

    def __init__(self, inner: BlockKernel, percentile: float) -> None:
        self.inner = inner
        self.wide = inner.wide
        self.percentile = percentile

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the inner kernel's parameters for the clipped range.

        The bound is the k-th smallest magnitude, k = ceil(percentile / 100 * values).
        """
        del whole
        count = torch.as_tensor(counts, device=blocks.device).expand(blocks.shape[0], 1)
        rank = torch.empty_like(count)
        numbers: Tensor = torch.unique(count)
        for number in numbers.tolist():  # full blocks, and the short last one of a row
            rank.masked_fill_(count == number, _rank(number, self.percentile))
        magnitudes = blocks.abs().sort(1).values
        padding = blocks.shape[1] - count  # padded zeros sort first
        bound = magnitudes.gather(1, rank - 1 + padding)
        low, high = ends(blocks)
        # a range of NaN or infinity must stay visible to the caller's check
        bound = torch.where(torch.isfinite(high - high + low - low), bound, high - low)
        return self.inner.from_range(torch.maximum(low, -bound), torch.minimum(high, bound))

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the inner kernel's parameters: a given range is not clipped again."""
        return self.inner.from_range(low, high)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Round as the inner kernel does."""
        self.inner.round(values, params, out, spare)
