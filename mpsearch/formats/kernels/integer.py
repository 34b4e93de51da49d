"""Integer rounding: scale, round to nearest even, clip, scale back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import (
    BlockKernel,
    Params,
    absmax,
    bounded_scale,
    check_floating,
    ends,
    largest_within,
    reject_nan,
    safe_scale,
)

if TYPE_CHECKING:
    from mpsearch.formats.integer import Integer

__all__ = ["AsymmetricKernel", "SymmetricKernel", "cast"]


class SymmetricKernel(BlockKernel):
    """Codes -top … top, the scale being the largest magnitude over top."""

    def __init__(self, top: int) -> None:
        self.top = top

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale amax / top."""
        del counts, whole
        return (self._scale(absmax(blocks)),)

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the scale max(|low|, |high|) / top."""
        return (self._scale(torch.maximum(low.abs(), high.abs())),)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest code within the range, times the scale."""
        del spare
        (scale,) = params
        torch.div(values, scale, out=out)
        out.round_().clamp_(-self.top, self.top).mul_(scale)

    def _scale(self, reach: Tensor) -> Tensor:
        return bounded_scale(safe_scale(reach / self.top), self.top)


class AsymmetricKernel(BlockKernel):
    """Codes 0 … top with a zero point, so that zero itself is always exact."""

    def __init__(self, top: int) -> None:
        self.top = top

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale (max - min) / top and the lowest and highest code less zero point."""
        del counts, whole
        return self.from_range(*ends(blocks))

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the parameters for [low, high] widened to hold zero."""
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        span = (high - low) / self.top
        # the span of two huge ends overflows although the step does not
        scale = safe_scale(torch.where(torch.isinf(span), high / self.top - low / self.top, span))
        zero = torch.round(-low / scale).clamp_(0, self.top)
        # the outermost codes may stand half a step outside the range: keep them finite
        reach = torch.maximum(zero, self.top - zero)
        return bounded_scale(scale, reach), -zero, self.top - zero

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write (clip(round(values / scale) + zero, 0, top) - zero) * scale."""
        del spare
        scale, low, high = params
        torch.div(values, scale, out=out)
        torch.clamp(out.round_(), low, high, out=out)
        out.mul_(scale)


def cast(spec: Integer, tensor: Tensor) -> Tensor:
    """Round to integer codes, unscaled; see `Integer.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    check_floating(tensor, spec.name)
    reject_nan(tensor, spec.name)
    low, high = spec.levels
    # float16 and bfloat16 have no 2^15 - 1, and the number next to it is no code
    top = largest_within(tensor.dtype, high)
    return tensor.detach().round().clamp_(-top if low else 0, top)
