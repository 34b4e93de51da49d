"""Meet in the middle: all choices whose excess over the dual bound stays below a threshold.

With multipliers m and reduced losses `r = loss + m . cost - least`, every choice x satisfies
`loss(x) = L(m) + sum_g r[g, x_g] + m . (limit - usage(x))`: its excess over the bound is the sum
of non-negative parts. So a choice with excess below a threshold leaves the minimising options
only where r is small, and few groups matter. They are split into two halves; each half's partial
choices are listed, and pairs are matched on a grid over the priced slacks (after Horowitz and
Sahni, J. ACM 21, 1974). The lists are complete, so finding nothing raises the proven bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mpsearch_solvers.core import Core, Swaps
from mpsearch_solvers.listing import Half, decode
from mpsearch_solvers.problem import Bools, Floats, Ints

_PAIRS = 1 << 20
_GRID_ROWS = 3


class _Grid:
    """A list's items sorted by the cell of their priced spending, for window queries."""

    def __init__(self, half: Half, priced: Floats, rows: Ints, cell: float) -> None:
        self.half = half
        self._rows = rows
        position = priced[rows]
        self._low = position.min(axis=1)
        spread = np.ptp(position, axis=1)
        # At most 2^20 cells a row, so that three rows fit into one int64 key; at least one cell.
        widest = np.where(spread > 0.0, spread, 1.0)
        self._cell = np.clip(np.full(len(rows), cell), widest / (1 << 20), widest)
        cells = np.floor((position - self._low[:, None]) / self._cell[:, None]).astype(np.int64)
        self._count = cells.max(axis=1) + 1 if len(rows) else np.zeros(0, dtype=np.int64)
        keys = np.zeros(len(half.excess), dtype=np.int64)
        for row in range(len(rows)):
            keys = keys * self._count[row] + cells[row]
        self.order = np.argsort(keys, kind="stable")
        self._keys = keys[self.order]

    def ranges(self, least: Floats, most: Floats) -> Iterator[tuple[Ints, Ints]]:
        """Yield first and past-last sorted positions of the cells that windows touch.

        Args:
            least: Lower ends of the windows, shape (all rows, queries).
            most: Upper ends.

        Yields:
            Two arrays of shape (queries,), one pair per combination of leading cells.
        """
        low = self._cells(least)
        high = self._cells(most)
        queries = low.shape[1]
        if not len(self._rows):
            yield np.zeros(queries, np.intp), np.full(queries, len(self._keys), np.intp)
            return
        inside = ((high >= 0) & (low < self._count[:, None])).all(axis=0)
        low = low.clip(0, self._count[:, None] - 1)
        high = high.clip(0, self._count[:, None] - 1)
        spans = (high - low).max(axis=1)[:-1].tolist()
        for offsets in np.ndindex(*[span + 1 for span in spans]):
            lead = low[:-1] + np.array(offsets, dtype=np.int64)[:, None]
            used = inside & (lead <= high[:-1]).all(axis=0)
            key = np.zeros(queries, dtype=np.int64)
            for row in range(len(lead)):
                key = key * self._count[row] + lead[row]
            key *= self._count[-1]
            first = np.searchsorted(self._keys, key + low[-1], side="left")
            last = np.searchsorted(self._keys, key + high[-1], side="right")
            yield np.where(used, first, 0), np.where(used, last, 0)

    def _cells(self, values: Floats) -> NDArray[np.int64]:
        scaled = (values[self._rows] - self._low[:, None]) / self._cell[:, None]
        cells: NDArray[np.int64] = np.floor(scaled.clip(-2.0, 1 << 40)).astype(np.int64)
        return cells


class Meeting:
    """Matches two lists; keeps the best feasible pair found so far."""

    def __init__(
        self,
        core: Core,
        threshold: float,
        fits: Callable[[Ints], bool],
        is_over: Callable[[], bool],
    ) -> None:
        """Prepare the priced slacks.

        Args:
            core: The base choice and its slack.
            threshold: Only pairs whose excess over the dual bound stays below this count.
            fits: Says by exact sums whether a whole choice keeps the limits.
            is_over: Whether to give up.
        """
        self.core = core
        self.best = threshold
        self.indices: Ints | None = None
        self.is_complete = True
        self.rejected = 0
        self._fits = fits
        self._is_over = is_over
        self._price = core.point.multipliers
        self._priced = np.flatnonzero(self._price > 0.0)
        self._free = np.flatnonzero(self._price == 0.0)
        self._slack = (self._price * core.slack)[:, None]
        self._rounding = (self._price * core.rounding)[:, None]

    def match(
        self, swaps: Swaps, groups: tuple[list[Ints], list[Ints]], halves: tuple[Half, Half]
    ) -> None:
        """Try every pair of the two lists whose excess can stay below the best.

        Of such a pair one side has less than half the excess, so each list's low half is
        matched with all of the other list.
        """
        first, second = halves
        half = self.best / 2.0
        low, high = first.excess < half, first.excess >= half
        self._match(swaps, groups, _take(first, low), second)
        mirrored = (groups[1], groups[0])
        self._match(swaps, mirrored, _take(second, second.excess < half), _take(first, high))

    def _match(
        self,
        swaps: Swaps,
        groups: tuple[list[Ints], list[Ints]],
        asking: Half,
        asked: Half,
    ) -> None:
        if not len(asking.excess) or not len(asked.excess):
            return
        priced = self._price[:, None] * asked.spent
        grid = _Grid(asked, priced, self._grid_rows(priced), self.best)
        order = np.argsort(asking.excess, kind="stable")
        wanted = self._slack - self._price[:, None] * asking.spent[:, order]
        excess = asking.excess[order]
        block = 1 << 14
        for start in range(0, len(order), block):
            part = slice(start, start + block)
            room = self.best - excess[part]
            if room[0] <= 0.0:
                return
            most = wanted[:, part] + self._rounding
            for first, last in grid.ranges(most - room.clip(0.0) - 2 * self._rounding, most):
                if self._is_over():
                    self.is_complete = False
                    return
                self._scan(swaps, groups, asking, grid, order[part], first, last)

    def _grid_rows(self, priced: Floats) -> Ints:
        """Return the priced rows along which windows are narrowest, at most three."""
        spread = np.ptp(priced[self._priced], axis=1)
        widest = np.argsort(-spread, kind="stable")[:_GRID_ROWS]
        rows: Ints = self._priced[widest[spread[widest] > 0.0]]
        return rows

    def _scan(
        self,
        swaps: Swaps,
        groups: tuple[list[Ints], list[Ints]],
        asking: Half,
        grid: _Grid,
        queries: Ints,
        first: Ints,
        last: Ints,
    ) -> None:
        """Check all pairs in some ranges, in portions that fit in memory."""
        counts = last - first
        asked = np.flatnonzero(counts > 0)
        if not len(asked):
            return
        ends = np.cumsum(counts[asked])
        begin = 0
        while begin < len(asked):
            done = ends[begin - 1] if begin else 0
            stop = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
            chosen = asked[begin:stop]
            size = counts[chosen]
            left = np.repeat(queries[chosen], size)
            within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
            right = grid.order[np.repeat(first[chosen], size) + within]
            self._check(swaps, groups, asking, grid.half, left, right)
            begin = stop

    def _check(
        self,
        swaps: Swaps,
        groups: tuple[list[Ints], list[Ints]],
        one: Half,
        two: Half,
        left: Ints,
        right: Ints,
    ) -> None:
        total = one.excess[left] + two.excess[right]
        near = total < self.best
        for row in self._priced:
            left, right, total = left[near], right[near], total[near]
            spare = self._slack[row] - self._price[row] * (
                one.spent[row, left] + two.spent[row, right]
            )
            total = total + np.maximum(spare, 0.0)
            near = (spare >= -self._rounding[row]) & (total < self.best)
        left, right, total = left[near], right[near], total[near]
        for row in self._free:
            spare = self.core.slack[row] - one.spent[row, left] - two.spent[row, right]
            near = spare >= -self.core.rounding[row]
            left, right, total = left[near], right[near], total[near]
        for place in np.argsort(total, kind="stable").tolist():
            if total[place] >= self.best:
                return
            indices = self.core.base.copy()
            for half, members, item in (
                (one, groups[0], left[place]),
                (two, groups[1], right[place]),
            ):
                for group, column in decode(swaps, members, half.code[:, item]):
                    indices[group] = column
            if self._fits(indices):
                self.best, self.indices = float(total[place]), indices
                return
            self.rejected += 1


def _take(half: Half, chosen: Bools) -> Half:
    return Half(half.excess[chosen], half.spent[:, chosen], half.code[:, chosen])
