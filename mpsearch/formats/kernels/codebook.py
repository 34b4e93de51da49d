"""Nearest entries of a table, and tables learned by exact one-dimensional k-means steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import (
    BlockKernel,
    Params,
    absmax,
    check_floating,
    reject_nan,
    safe_scale,
)

if TYPE_CHECKING:
    from mpsearch.formats.codebook import Codebook

__all__ = ["CodebookKernel", "LearnedKernel", "cast"]

LLOYD_STEPS = 30
"""Steps of the k-means iteration; a step is cheap because rows are sorted once."""

LEARNING_CHUNK = 2**22
"""Values sorted at a time, which bounds the memory of learning."""


class CodebookKernel(BlockKernel):
    """One table for all blocks."""

    def __init__(self, table: tuple[float, ...]) -> None:
        self.table = torch.tensor(table, dtype=torch.float64)
        self.reach = max(abs(value) for value in table)

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale amax / largest magnitude of the table."""
        del counts, whole
        return (safe_scale(absmax(blocks) / self.reach),)

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return the scale max(|low|, |high|) / largest magnitude of the table."""
        return (safe_scale(torch.maximum(low.abs(), high.abs()) / self.reach),)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest entry times the scale; NaN stays NaN."""
        del spare
        (scale,) = params
        torch.div(values, scale, out=out)
        unknown = torch.isnan(out)
        _nearest(self.table, out, out)
        out.mul_(scale).masked_fill_(unknown, float("nan"))


def _nearest(table: Tensor, values: Tensor, out: Tensor) -> None:
    entries = table.to(values.device, values.dtype)
    middles = ((table[1:] + table[:-1]) / 2).to(values.device, values.dtype)
    index = torch.bucketize(values, middles, out_int32=True)
    out.copy_(entries[index])


class LearnedKernel(BlockKernel):
    """A table of its own for every row."""

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def prepare(self, blocks: Tensor, counts: Tensor | int, rows: int) -> Tensor | None:
        """Return the table of every block's row, (blocks, entries), learned row by row."""
        per_row = blocks.shape[0] // rows
        length = per_row * blocks.shape[1]
        step = max(1, LEARNING_CHUNK // length)
        tables = []
        for start in range(0, rows, step):
            which = slice(start * per_row, (start + step) * per_row)
            number = counts if isinstance(counts, int) else counts[which]
            part = blocks[which].to(_compute(blocks.dtype))
            scaled = part / safe_scale(absmax(part))
            inside = torch.arange(blocks.shape[1], device=blocks.device) < number
            scaled = torch.where(inside, scaled, torch.inf)
            table = _learn(scaled.view(-1, length), inside.expand_as(scaled), self.entries)
            tables.append(table.repeat_interleave(per_row, 0))
        return torch.cat(tables).to(_compute(blocks.dtype))

    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return the scale and the table of every block."""
        del counts
        assert whole is not None
        return safe_scale(absmax(blocks)), whole

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Refuse: a range says nothing about the values to learn."""
        raise NotImplementedError("learned tables need values, not a range")

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest entry of the row's table times the scale."""
        del spare
        scale, table = params
        torch.div(values, scale, out=out)
        middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
        index = torch.searchsorted(middles, out)
        torch.gather(table, 1, index, out=out)
        out.mul_(scale)


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _learn(values: Tensor, inside: Tensor, entries: int) -> Tensor:
    """Lloyd's iteration on every row, from quantiles; sorted rows turn sums into differences.

    Args:
        values: (rows, length), infinity where there is no value.
        inside: Which values count; any shape of as many elements.
        entries: Values per table.

    Returns:
        Tables in ascending order, (rows, entries), float64; NaN where a row has NaN.
    """
    ordered = values.double().sort(1).values
    number = inside.reshape(values.shape).sum(1, keepdim=True)
    finite = torch.where(torch.isinf(ordered), 0.0, ordered)
    sums = torch.nn.functional.pad(finite.cumsum(1), (1, 0))
    share = (torch.arange(entries, device=values.device) + 0.5) / entries
    table = ordered.gather(1, (share * number).long().clamp(max=values.shape[1] - 1))
    for _ in range(LLOYD_STEPS):
        middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
        cuts = torch.searchsorted(ordered, middles, right=True)
        cuts = torch.cat([torch.zeros_like(number), cuts, number], 1)
        inner = cuts.diff(dim=1)
        means = sums.gather(1, cuts).diff(dim=1) / inner.clamp(min=1)
        table = torch.where(inner > 0, means, table)
    return torch.where(torch.isnan(sums[:, -1:]), torch.nan, table)


def cast(spec: Codebook, tensor: Tensor) -> Tensor:
    """Replace values by the nearest entries, unscaled; see `Codebook.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    check_floating(tensor, spec.name)
    reject_nan(tensor, spec.name)
    exact = tensor.detach().double()
    rounded = torch.empty_like(exact)
    _nearest(torch.tensor(spec.table, dtype=torch.float64), exact, rounded)
    return rounded.to(tensor.dtype)
