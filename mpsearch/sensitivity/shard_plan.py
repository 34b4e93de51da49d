"""How a long measurement is cut into shards: by its size alone, never by who computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

from mpsearch.models.dataset import Batch
from mpsearch.sensitivity.protocol import ScoringTask

__all__ = ["Cell", "batches_of", "cells", "forward_flops", "some_batches"]

SMALLEST = 5e8
"""Floating-point operations below which a shard is not worth its file: some hundredths of a second
on one core."""

START = 2e6
"""Floating-point operations that a core could do while a layer and what surrounds it is started."""

MOST = 256
"""Shards of one measurement, about: what is lost when a run is killed is below half a percent."""


@dataclass(frozen=True)
class Cell:
    """A rectangle of a measurement.

    Attributes:
        batches: Numbers of batches of the data.
        columns: Numbers of what is done on each of them: probes, draws, options, choices.
    """

    batches: range
    columns: range

    @property
    def steps(self) -> int:
        """How many steps of progress it is: one for each column on each batch."""
        return len(self.batches) * len(self.columns)


def cells(
    batches: int, columns: int, flops: float, *, finest: int = 1, most: int = MOST
) -> list[Cell]:
    """Cut batches x columns into rectangles of about equal size, batch after batch.

    Batches are parted first, because columns share what was computed of their batch; columns only
    where there are too few batches.

    Args:
        batches: How many batches there are, at least 1.
        columns: How many columns there are, at least 1.
        flops: Floating-point operations of one column on one batch.
        finest: Fewest columns that are worth a shard of their own.
        most: Most cells, unless there are more batches than that in one cell each.

    Returns:
        Cells that cover everything once, in the order of the batches and then of the columns.
    """
    wanted = min(most, int(batches * columns * flops // SMALLEST))
    if wanted <= batches:
        return [Cell(rows, range(columns)) for rows in _even(batches, max(1, wanted))]
    parts = max(1, min(wanted // batches, columns // finest))
    return [
        Cell(range(batch, batch + 1), some)
        for batch in range(batches)
        for some in _even(columns, parts)
    ]


def batches_of(task: ScoringTask) -> int:
    """Count the batches of a task's data.

    Args:
        task: Its data.

    Returns:
        The number of batches, the last of which may be smaller.
    """
    return -(-len(task.data) // task.data.batch_size)


def some_batches(task: ScoringTask, numbers: range) -> Iterator[Batch]:
    """Draw some batches of a task's data.

    Args:
        task: Its data.
        numbers: Numbers of the batches, one after the other.

    Returns:
        The batches, in their order.
    """
    return islice(task.data.batches(), numbers.start, numbers.stop)


def forward_flops(task: ScoringTask) -> float:
    """Estimate the floating-point operations of one batch's forward pass.

    Args:
        task: Its layers and data.

    Returns:
        Two for every multiply-accumulate of the layers that are scored, and what starting them
        is worth.
    """
    inputs = min(len(task.data), task.data.batch_size)
    return sum(2.0 * inputs * layer.macs + START for layer in task.layers)


def _even(count: int, parts: int) -> list[range]:
    """Cut 0 … count into ranges whose lengths differ by at most one."""
    edges = [count * part // parts for part in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(edges)]
