"""Blocks with a power-of-two scale, rounded without dividing by it.

Multiplying by a power of two is exact, so the rounding constant of a value can carry the block's
scale (see `minifloat`): no value is scaled down and up again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import (
    BlockKernel,
    Params,
    absmax,
    check_floating,
    largest_within,
    reject_nan,
)
from mpsearch.formats.kernels.minifloat import binade, magic

if TYPE_CHECKING:
    from mpsearch.formats.microscaling import BlockFloat
    from mpsearch.formats.minifloat import FloatGrid

__all__ = ["BlockFloatKernel", "MicroscalingKernel", "cast", "shared_scale"]

LOWEST_SCALE = 2.0**-127
HIGHEST_SCALE = 2.0**127

HEADROOM = 2.0**96
"""Scales from here on are rounded in float64: the rounding constant would overflow float32."""


def shared_scale(reach: Tensor, emax: int) -> Tensor:
    """Return 2^(floor(log2 reach) - emax) within the range of E8M0; one for zero.

    Args:
        reach: Largest magnitudes, float32 or float64. NaN and infinity come back as they are.
        emax: Exponent of the largest element value.

    Returns:
        Scales of the same shape and type.
    """
    scale = binade(reach, torch.empty_like(reach)).mul_(2.0**-emax)
    scale.clamp_(LOWEST_SCALE, HIGHEST_SCALE)
    scale = torch.where(reach == 0, torch.ones_like(scale), scale)
    return torch.where(torch.isfinite(reach), scale, reach)


class _PowerKernel(BlockKernel):
    """Shared by both kinds: the scale, and the way out for huge values."""

    emax: int

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the shared scale of every block."""
        del counts, whole
        return (shared_scale(absmax(blocks), self.emax),)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest element values times the scale."""
        (scale,) = params
        if values.dtype == torch.float32 and bool((scale >= HEADROOM).any()):
            wide = values.double()
            result = torch.empty_like(wide)
            self.apply(wide, scale.double(), result, torch.empty_like(wide))
            out.copy_(result)
        else:
            self.apply(values, scale, out, spare)

    def apply(self, values: Tensor, scale: Tensor, out: Tensor, spare: Tensor) -> None:
        """Write the rounded values; the scale leaves room for the rounding constant."""
        raise NotImplementedError


class MicroscalingKernel(_PowerKernel):
    """Small floating-point elements."""

    def __init__(self, grid: FloatGrid) -> None:
        self.grid = grid
        self.emax = grid.emax

    def apply(self, values: Tensor, scale: Tensor, out: Tensor, spare: Tensor) -> None:
        """Write the nearest values of the scaled grid."""
        factor = magic(values.dtype, self.grid.mantissa)
        binade(values, spare)
        torch.maximum(spare, scale * self.grid.smallest_normal, out=spare)
        torch.add(values, spare, alpha=factor, out=out)
        out.sub_(spare, alpha=factor)
        top = scale * self.grid.top
        torch.clamp(out, -top, top, out=out)


class BlockFloatKernel(_PowerKernel):
    """Integer elements."""

    emax = 0

    def __init__(self, step: float, top: int) -> None:
        self.step = step
        self.top = top

    def apply(self, values: Tensor, scale: Tensor, out: Tensor, spare: Tensor) -> None:
        """Write the nearest multiples of the block's step."""
        del spare
        step = scale * self.step
        shift = step * magic(values.dtype, 0)
        torch.add(values, shift, out=out)
        out.sub_(shift)
        top = step * self.top
        torch.clamp(out, -top, top, out=out)


def cast(spec: BlockFloat, tensor: Tensor) -> Tensor:
    """Round to element values, unscaled; see `BlockFloat.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    check_floating(tensor, spec.name)
    reject_nan(tensor, spec.name)
    top = largest_within(tensor.dtype, spec.top * spec.step)
    values = (tensor.detach().double() / spec.step).round_().mul_(spec.step)
    return values.clamp_(-top, top).to(tensor.dtype)
