"""Nearest entries of a table, and tables learned by exact one-dimensional k-means steps."""

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
        """Return the scale amax / largest magnitude of the table, to divide and to multiply by.

        They differ for a block of zeros, which a table without zero could not keep otherwise.
        """
        del counts, whole
        reach = absmax(blocks)
        scale = bounded_scale(safe_scale(reach / self.reach), self.reach)
        return scale, torch.where(reach == 0, reach, scale)

    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write the nearest entry times the scale; NaN stays NaN."""
        del spare
        scale, stored = params
        torch.div(values, scale, out=out)
        unknown = torch.isnan(out)
        _nearest(self.table, out, out)
        out.mul_(stored).masked_fill_(unknown, float("nan"))


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
    """Lloyd's iteration on every row, from three starts; the best of them row by row.

    Quantiles crowd the middle of a bell-shaped row and even spacing its tails, so each alone ends
    in a poor local optimum on some rows; their mean is the third start.

    Args:
        values: (rows, length), infinity where there is no value.
        inside: Which values count; any shape of as many elements.
        entries: Values per table.

    Returns:
        Tables in ascending order, (rows, entries), float64; NaN where a row has NaN.
    """
    rows = _SortedRows(values, inside)
    share = (torch.arange(entries, device=values.device) + 0.5) / entries
    quantiles = rows.at(share)
    low, high = rows.at(share.new_zeros(1)), rows.at(share.new_ones(1))
    even = low + (high - low) * share
    table, least = rows.settle(quantiles)
    for start in (even, (quantiles + even) / 2):
        other, error = rows.settle(start)
        table = torch.where(error < least, other, table)
        least = torch.minimum(least, error)
    return torch.where(torch.isnan(rows.sums[:, -1:]), torch.nan, table)


class _SortedRows:
    """Rows in ascending order with running sums, so that a cluster's sum is one difference."""

    def __init__(self, values: Tensor, inside: Tensor) -> None:
        self.ordered = values.double().sort(1).values
        self.number = inside.reshape(values.shape).sum(1, keepdim=True)
        finite = torch.where(torch.isinf(self.ordered), 0.0, self.ordered)
        self.sums = torch.nn.functional.pad(finite.cumsum(1), (1, 0))

    def at(self, share: Tensor) -> Tensor:
        """Return the values at these shares of every row, (rows, shares)."""
        return self.ordered.gather(1, ((self.number - 1) * share).round().long())

    def settle(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Iterate from a table; return the table and minus the sum of squares it explains."""
        for _ in range(LLOYD_STEPS):
            middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
            cuts = torch.searchsorted(self.ordered, middles, right=True)
            cuts = torch.cat([torch.zeros_like(self.number), cuts, self.number], 1)
            members = cuts.diff(dim=1)
            means = self.sums.gather(1, cuts).diff(dim=1) / members.clamp(min=1)
            table = torch.where(members > 0, means, table)
        return table, -(members * table.square()).sum(1, keepdim=True)


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
