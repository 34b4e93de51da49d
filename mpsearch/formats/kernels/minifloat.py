"""Floating-point rounding by adding and subtracting a constant of the value's own binade.

In the binade [2^e, 2^(e+1)) a format with y mantissa bits has the step 2^(e-y). Adding
1.5 * 2^(e-y) * 2^23 to a float32 leaves exactly that step as the last bit of the sum, so the
processor's own round-to-nearest-even does the rounding, and subtracting the constant again is
exact (the same holds for float64 with 2^52). Below the smallest normal value the binade is held
at that value, which makes the subnormals.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import (
    BlockKernel,
    Params,
    absmax,
    bounded_scale,
    check_floating,
    reject_nan,
    safe_scale,
)

if TYPE_CHECKING:
    from mpsearch.formats.base import Overflow
    from mpsearch.formats.minifloat import FloatGrid

__all__ = ["MinifloatKernel", "binade", "cast", "magic", "round_unscaled"]

EXPONENT_IN_FLOAT32 = 7
MANTISSA_IN_FLOAT32 = 12
"""Widest fields of a format that is computed in float32: twice its mantissa bits still fit."""

_LAYOUT = {
    torch.float32: (torch.int32, 0x7F800000, 23),
    torch.float64: (torch.int64, 0x7FF << 52, 52),
}


def binade(values: Tensor, out: Tensor) -> Tensor:
    """Write the power of two at or below each magnitude; zero for zeros and subnormals.

    Args:
        values: float32 or float64.
        out: Same shape and type.

    Returns:
        `out`.
    """
    integer, mask, _ = _LAYOUT[values.dtype]
    torch.bitwise_and(values.view(integer), mask, out=out.view(integer))
    return out


def magic(dtype: torch.dtype, mantissa: int) -> float:
    """Return the factor by which a binade is multiplied to round to that many mantissa bits."""
    return float(1.5 * 2.0 ** (_LAYOUT[dtype][2] - mantissa))


def round_unscaled(grid: FloatGrid, values: Tensor, out: Tensor, spare: Tensor) -> None:
    """Write the nearest grid value, ties to even, as if the largest exponent had no end.

    Args:
        grid: The format.
        values: float32 or float64 of magnitude below 4 times the largest value of the grid.
        out: Same shape and type; may be `values` itself.
        spare: Same shape and type; overwritten.
    """
    factor = magic(values.dtype, grid.mantissa)
    binade(values, spare).clamp_(min=grid.smallest_normal)
    torch.add(values, spare, alpha=factor, out=out)
    out.sub_(spare, alpha=factor)


def _is_wide(grid: FloatGrid) -> bool:
    """Whether float32 computes too coarsely, or its range ends before that of the grid."""
    return grid.exponent > EXPONENT_IN_FLOAT32 or grid.mantissa > MANTISSA_IN_FLOAT32


def _top_within(grid: FloatGrid, dtype: torch.dtype) -> float:
    """Return the largest value of the grid that the type has, too."""
    info = torch.finfo(dtype)
    last = math.frexp(info.max)[1] - 1  # its largest binade
    if grid.emax < last:
        return grid.top
    digits = min(grid.mantissa, round(-math.log2(info.eps)))
    return min(grid.top, math.ldexp(2.0 - 2.0**-digits, last))


class MinifloatKernel(BlockKernel):
    """Scale so that the largest magnitude meets the largest value, round, scale back."""

    def __init__(self, grid: FloatGrid) -> None:
        self.grid = grid
        self.wide = _is_wide(grid)

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale amax / largest value."""
        del counts, whole
        return (self._scale(absmax(blocks)),)

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the scale max(|low|, |high|) / largest value."""
        return (self._scale(torch.maximum(low.abs(), high.abs())),)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest value of the scaled grid."""
        (scale,) = params
        torch.div(values, scale, out=out)
        out.clamp_(-self.grid.top, self.grid.top)
        round_unscaled(self.grid, out, out, spare)
        out.mul_(scale)

    def _scale(self, reach: Tensor) -> Tensor:
        return bounded_scale(safe_scale(reach / self.grid.top), self.grid.top)


def cast(grid: FloatGrid, tensor: Tensor, overflow: Overflow, name: str) -> Tensor:
    """Round to the grid without a scale; see `Minifloat.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    check_floating(tensor, name)
    if not grid.has_nan:
        reject_nan(tensor, name)
    source = tensor.detach()
    exact = source.double() if _is_wide(grid) or source.dtype == torch.float64 else source.float()
    reach = 2 * grid.top
    values = exact.clamp(-reach, reach)
    rounded = torch.empty_like(values)
    round_unscaled(grid, values, rounded, torch.empty_like(values))
    if overflow == "ieee":
        beyond = rounded.abs() > grid.top
        rounded = torch.where(beyond, torch.full_like(rounded, grid.overflow_value), rounded)
    if overflow == "saturate" or grid.specials == "none":
        top = _top_within(grid, source.dtype)
        rounded.clamp_(-top, top)
    if grid.specials == "fnuz":
        rounded += 0.0  # its code of negative zero means NaN
    else:
        torch.copysign(rounded, exact, out=rounded)
    return rounded.to(source.dtype)
