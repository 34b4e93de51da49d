"""Tries every exponent width on the whole tensor and rounds with the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import BlockKernel, Params
from mpsearch.formats.kernels.clipping import clipped
from mpsearch.formats.kernels.minifloat import MinifloatKernel

if TYPE_CHECKING:
    from mpsearch.formats.granularity import Clip
    from mpsearch.formats.minifloat import FloatGrid

__all__ = ["ChoosingKernel"]

TRIAL_CHUNK = 2**22
"""Values tried at a time, which bounds the memory of the choice."""


class ChoosingKernel(BlockKernel):
    """One kernel per candidate grid; the choice travels with the parameters."""

    def __init__(self, grids: tuple[FloatGrid, ...], clip: Clip | None) -> None:
        self.kernels = [clipped(MinifloatKernel(grid), clip) for grid in grids]

    def prepare(self, blocks: Tensor, counts: Tensor | int, rows: int) -> Tensor | None:
        """Return the index of the grid of least squared error, (1, 1); NaN for NaN values.

        A tie goes to the fewest exponent bits.
        """
        del rows
        compute = torch.float64 if blocks.dtype == torch.float64 else torch.float32
        errors = torch.zeros(len(self.kernels), dtype=torch.float64, device=blocks.device)
        step = max(1, TRIAL_CHUNK // blocks.shape[1])
        for start in range(0, blocks.shape[0], step):
            part = blocks[start : start + step].to(compute)
            number = counts if isinstance(counts, int) else counts[start : start + step]
            rounded, spare = torch.empty_like(part), torch.empty_like(part)
            for index, kernel in enumerate(self.kernels):
                kernel.round(part, kernel.fit(part, number, None), rounded, spare)
                errors[index] += rounded.sub_(part).double().square_().sum()
        choice = errors.argmin().double().reshape(1, 1)
        return torch.where(torch.isfinite(errors.sum()), choice, torch.nan)

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the chosen kernel's parameters, and the choice."""
        assert whole is not None
        return (*self.kernels[int(whole)].fit(blocks, counts, None), whole)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Round as the chosen kernel does."""
        *inner, choice = params
        self.kernels[int(choice)].round(values, tuple(inner), out, spare)
