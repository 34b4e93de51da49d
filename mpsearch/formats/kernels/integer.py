"""Integer rounding: scale, round to nearest even, clip, scale back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.formats.kernels.engine import BlockKernel, Params, check_floating

if TYPE_CHECKING:
    from mpsearch.formats.base import Overflow
    from mpsearch.formats.integer import Integer

__all__ = ["AsymmetricKernel", "SymmetricKernel", "absmax", "cast", "safe_scale"]


def absmax(blocks: Tensor) -> Tensor:
    """Return the largest magnitude of every block, (blocks, 1); NaN where there is a NaN."""
    return torch.maximum(blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True).neg_())


def safe_scale(scale: Tensor) -> Tensor:
    """Replace zero by one and raise subnormal scales to the smallest normal number.

    A subnormal scale has lost bits, so that values at the end of the range would land off the
    grid by more than half a step; the smallest normal scale loses nothing.

    Returns:
        Scales of the same shape, all positive where they were finite.
    """
    tiny = torch.finfo(scale.dtype).tiny
    return torch.where(scale == 0, torch.ones_like(scale), scale.clamp(min=tiny))


class SymmetricKernel(BlockKernel):
    """Codes -(n/2) … n/2 for an even number n of steps."""

    def __init__(self, steps: int) -> None:
        self.top = steps // 2

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale amax / top."""
        del counts, whole
        return (safe_scale(absmax(blocks) / self.top),)

    def fit_range(self, low: float, high: float) -> Params:
        """Return the scale max(|low|, |high|) / top."""
        reach = torch.tensor([[max(abs(low), abs(high))]], dtype=torch.float32)
        return (safe_scale(reach / self.top),)

    def round(self, values: Tensor, params: Params, out: Tensor) -> None:
        """Write the nearest code within the range, times the scale."""
        (scale,) = params
        torch.div(values, scale, out=out)
        out.round_().clamp_(-self.top, self.top).mul_(scale)


class AsymmetricKernel(BlockKernel):
    """Codes 0 … n with a zero point, so that zero itself is always exact."""

    def __init__(self, top: int) -> None:
        self.top = top

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale (max - min) / top and the lowest and highest code less zero point."""
        del counts, whole
        return self._params(blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True))

    def fit_range(self, low: float, high: float) -> Params:
        """Return the parameters for [low, high] widened to hold zero."""
        ends = torch.tensor([[low, high]], dtype=torch.float32)
        return self._params(ends[:, :1], ends[:, 1:])

    def _params(self, low: Tensor, high: Tensor) -> Params:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        span = (high - low) / self.top
        # the span of two huge ends overflows although the step does not
        scale = safe_scale(torch.where(torch.isinf(span), high / self.top - low / self.top, span))
        zero = torch.round(-low / scale).clamp_(0, self.top)
        return scale, -zero, self.top - zero

    def round(self, values: Tensor, params: Params, out: Tensor) -> None:
        """Write (clip(round(values / scale) + zero, 0, top) - zero) * scale."""
        scale, low, high = params
        torch.div(values, scale, out=out)
        torch.clamp(out.round_(), low, high, out=out)
        out.mul_(scale)


def cast(spec: Integer, tensor: Tensor, overflow: Overflow) -> Tensor:
    """Round to integer codes, unscaled; see `Integer.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        InputError: `overflow="ieee"`, or a value is NaN.
    """
    check_floating(tensor, spec.name)
    if overflow != "saturate":
        raise InputError(f"{spec.name} has no infinity: overflow must be 'saturate'")
    if bool(torch.isnan(tensor).any()):
        raise InputError(f"{spec.name} has no code for NaN: {int(torch.isnan(tensor).sum())} given")
    low, high = spec.levels
    return tensor.detach().round().clamp_(low, high)
