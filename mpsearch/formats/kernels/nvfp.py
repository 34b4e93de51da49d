"""Two levels of scale: a float32 one per tensor, an FP8 E4M3 one per block."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import BlockKernel, Params, absmax, safe_scale
from mpsearch.formats.kernels.minifloat import round_unscaled
from mpsearch.formats.minifloat import FloatGrid

__all__ = ["SCALE_GRID", "NvKernel"]

SCALE_GRID = FloatGrid(4, 3, 7, "fn")


class NvKernel(BlockKernel):
    """Elements on a grid, scaled by the product of both scales."""

    def __init__(self, grid: FloatGrid) -> None:
        self.grid = grid

    def prepare(self, blocks: Tensor, counts: Tensor | int, rows: int) -> Tensor | None:
        """Return the tensor's scale, amax / (6 * 448)."""
        del counts, rows
        low, high = torch.aminmax(blocks)
        reach = torch.maximum(low.neg(), high).reshape(1, 1)
        reach = reach if reach.dtype == torch.float64 else reach.float()
        return self._tensor_scale(reach)

    def prepare_range(self, reach: float) -> Tensor | None:
        """Return the tensor's scale fixed in calibration; one when only zeros were seen."""
        beyond = reach > torch.finfo(torch.float32).max
        compute = torch.float64 if beyond else torch.float32
        return self._tensor_scale(torch.tensor([[reach]], dtype=compute))

    def _tensor_scale(self, reach: Tensor) -> Tensor:
        return safe_scale(reach / (self.grid.top * SCALE_GRID.top))

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the product of the block's E4M3 scale and the tensor's scale."""
        del counts
        reach = absmax(blocks)
        whole = self._tensor_scale(reach) if whole is None else whole.to(reach)
        return self._params(reach, whole)

    def _params(self, reach: Tensor, whole: Tensor) -> Params:
        wanted = (reach / (self.grid.top * whole)).clamp_(max=SCALE_GRID.top)
        scale = torch.empty_like(wanted)
        round_unscaled(SCALE_GRID, wanted, scale, torch.empty_like(wanted))
        return (torch.where(scale == 0, torch.ones_like(scale), scale) * whole,)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest element values times the scale."""
        (scale,) = params
        torch.div(values, scale, out=out)
        out.clamp_(-self.grid.top, self.grid.top)
        round_unscaled(self.grid, out, out, spare)
        out.mul_(scale)
