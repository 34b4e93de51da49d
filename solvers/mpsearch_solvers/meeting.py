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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch_solvers.lagrangian import DualPoint, Knapsack
from mpsearch_solvers.problem import Bools, Floats, Ints

_BINS = 512
_PAIRS = 1 << 20
_GRID_ROWS = 3
_MERGE_FROM = 2_000
_LONGEST = 2_000_000


@dataclass(frozen=True, eq=False)
class Swaps:
    """What leaving the minimising option of a group does, one entry per (group, other option).

    Attributes:
        group: Group of each swap, ascending by `order`.
        column: The other option.
        excess: Reduced loss r of the other option, not negative.
        spent: Change of every row's usage, shape (rows, swaps).
    """

    group: Ints
    column: Ints
    excess: Floats
    spent: Floats


@dataclass(frozen=True, eq=False)
class Half:
    """All partial choices of half the groups with excess below a threshold.

    Attributes:
        excess: Summed excess, shape (items,).
        spent: Summed change of usage, shape (rows, items).
        code: Which swaps were made, packed, shape (words, items).
    """

    excess: Floats
    spent: Floats
    code: NDArray[np.uint64]


class Core:
    """The dual's best point, seen as a base choice, its slack, and the swaps away from it."""

    def __init__(self, knapsack: Knapsack, point: DualPoint, base: Ints | None = None) -> None:
        """Compute reduced losses.

        Args:
            knapsack: The problem in scaled units.
            point: The dual at its best multipliers.
            base: The choice that swaps leave; the dual's minimising choice by default. Groups in
                which another base pays excess are not swapped any more.
        """
        self.knapsack = knapsack
        self.point = point
        priced = knapsack.reduced(point.multipliers)
        groups = np.arange(len(priced))
        self.base = point.indices if base is None else base
        excess = priced - priced[groups, point.indices][:, None]
        self.excess: Floats = np.maximum(excess, 0.0)
        self.excess[~knapsack.allowed] = np.inf
        paid = self.excess[groups, self.base]
        self.start = float(paid.sum())
        self._movable = paid == 0.0
        self.slack = knapsack.limit - knapsack.usage(self.base)
        # Sums in another order differ by rounding; within this much math.fsum decides.
        self.rounding = 1e-12 * (np.abs(knapsack.limit) + knapsack.cost.max(axis=2).sum(axis=1))

    def kept(self, excess: float) -> Bools:
        """Return the options that a choice with at most so much excess can contain."""
        kept: Bools = self.excess <= excess
        kept[np.arange(len(kept)), self.base] = True
        return kept

    def swaps(self, threshold: float) -> Swaps:
        """Return all swaps with excess below a threshold."""
        small = self.excess < threshold
        small[np.arange(len(small)), self.base] = False
        small &= self._movable[:, None]
        group, column = np.nonzero(small)
        cost = self.knapsack.cost
        spent = cost[:, group, column] - cost[:, group, self.base[group]]
        return Swaps(group, column, self.excess[group, column], spent)

    def useful_swaps(self, most: float, count: int) -> Swaps:
        """Return the swaps of least excess for the spending they move.

        Args:
            most: Swaps with more excess than this are left out.
            count: How many swaps.

        Returns:
            The swaps.
        """
        small = self.swaps(most)
        moved = self.point.multipliers @ np.abs(small.spent)
        with np.errstate(divide="ignore", invalid="ignore"):
            weighed = np.where(moved > 0.0, small.excess / moved, np.inf)
        chosen = np.argsort(weighed, kind="stable")[:count]
        return Swaps(
            small.group[chosen],
            small.column[chosen],
            small.excess[chosen],
            small.spent[:, chosen],
        )


def halve(swaps: Swaps) -> tuple[list[Ints], list[Ints]]:
    """Split the swaps' groups into two lists of alike weight.

    Args:
        swaps: All swaps.

    Returns:
        Two lists of groups, each group given as the positions of its swaps; the groups whose
        cheapest swap is dearest come first, since few partial choices survive them.
    """
    if not len(swaps.group):
        return [], []
    order = np.lexsort((swaps.excess, swaps.group))
    edges = np.flatnonzero(np.diff(swaps.group[order])) + 1
    members = np.split(order, edges)
    members.sort(key=lambda positions: -float(swaps.excess[positions[0]]))
    return members[0::2], members[1::2]


def list_sizes(excess: list[Floats], most: float) -> tuple[Floats, Floats]:
    """Count the partial choices of one half by their excess.

    Args:
        excess: Excess of every group's swaps.
        most: The largest threshold of interest.

    Returns:
        Thresholds, ascending up to `most`, and at least how many partial choices stay below
        each (excesses are rounded down to the grid, so the true count is smaller).
    """
    counts = np.zeros(_BINS)
    counts[0] = 1.0
    for values in excess:
        steps = (values * (_BINS / most)).astype(np.intp)
        grown = counts.copy()
        for step in steps[steps < _BINS].tolist():
            grown[step:] += counts[: _BINS - step]
        counts = grown
    return most * np.arange(1, _BINS + 1) / _BINS, np.cumsum(counts)


def list_half(
    swaps: Swaps,
    groups: list[Ints],
    threshold: float,
    is_over: Callable[[], bool],
    *,
    merges_equal: bool = True,
) -> Half | None:
    """List all partial choices of some groups with excess below a threshold.

    Of partial choices that spend the same to the last bit only the one of least excess is kept:
    with few kinds of groups that is what keeps the lists short.

    Args:
        swaps: All swaps.
        groups: The half's groups, as :func:`halve` gives them.
        threshold: Excess that a partial choice stays below.
        is_over: Whether to give up.
        merges_equal: Whether to drop all but the best of equal spending.

    Returns:
        The list, or None if time ran out or it grew too long.
    """
    bits = [max(1, len(members).bit_length()) for members in groups]
    words = _words(bits)
    excess = np.zeros(1)
    spent = np.zeros((len(swaps.spent), 1))
    code = np.zeros((words, 1), dtype=np.uint64)
    merged_at = _MERGE_FROM
    for members, (word, shift) in zip(groups, _places(bits), strict=True):
        if is_over():
            return None
        parts = [(excess, spent, code)]
        for choice, swap in enumerate(members.tolist(), start=1):
            room = excess < threshold - swaps.excess[swap]
            marked = code[:, room]
            marked[word] |= np.uint64(choice << shift)
            parts.append(
                (
                    excess[room] + swaps.excess[swap],
                    spent[:, room] + swaps.spent[:, swap, None],
                    marked,
                )
            )
        excess = np.concatenate([part[0] for part in parts])
        spent = np.concatenate([part[1] for part in parts], axis=1)
        code = np.concatenate([part[2] for part in parts], axis=1)
        if merges_equal and len(excess) > merged_at:
            kept = _best_of_equals(excess, spent)
            # Where hardly anything was equal, looking again soon would be a waste.
            patience = 2 if len(kept) < 0.9 * len(excess) else 64
            excess, spent, code = excess[kept], spent[:, kept], code[:, kept]
            merged_at = patience * len(excess)
        if len(excess) > _LONGEST:
            return None
    return Half(excess, spent, code)


def _best_of_equals(excess: Floats, spent: Floats) -> Ints:
    """Return the items that no item of exactly equal spending beats, in their order."""
    order = np.lexsort((excess, *spent))
    ordered = spent[:, order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    kept: Ints = np.sort(order[is_first])
    return kept


def list_pairs(swaps: Swaps, groups: list[Ints]) -> Half:
    """List no swap, every single swap, and every pair of swaps of different groups.

    Args:
        swaps: All swaps.
        groups: The half's groups, as :func:`halve` gives them.

    Returns:
        The list, whatever its excesses.
    """
    bits = [max(1, len(members).bit_length()) for members in groups]
    order = np.concatenate(groups) if groups else np.zeros(0, dtype=np.intp)
    marks = np.zeros((_words(bits), len(order)), dtype=np.uint64)
    owner = np.zeros(len(order), dtype=np.intp)
    at = 0
    for place, (members, (word, shift)) in enumerate(zip(groups, _places(bits), strict=True)):
        for choice in range(1, len(members) + 1):
            marks[word, at] = np.uint64(choice << shift)
            owner[at] = place
            at += 1
    first, second = np.triu_indices(len(order), 1)
    apart = owner[first] != owner[second]
    first, second = first[apart], second[apart]
    excess, spent = swaps.excess[order], swaps.spent[:, order]
    none = np.zeros(1)
    return Half(
        np.concatenate([none, excess, excess[first] + excess[second]]),
        np.concatenate(
            [np.zeros((len(spent), 1)), spent, spent[:, first] + spent[:, second]], axis=1
        ),
        np.concatenate(
            [np.zeros((len(marks), 1), np.uint64), marks, marks[:, first] | marks[:, second]],
            axis=1,
        ),
    )


def _words(bits: list[int]) -> int:
    places = list(_places(bits))
    return places[-1][0] + 1 if places else 1


def _places(bits: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the word and shift of every group's field."""
    word, shift = 0, 0
    for width in bits:
        if shift + width > 64:
            word, shift = word + 1, 0
        yield word, shift
        shift += width


def decode(swaps: Swaps, groups: list[Ints], code: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield the (group, column) swaps of one packed partial choice."""
    bits = [max(1, len(members).bit_length()) for members in groups]
    for members, width, (word, shift) in zip(groups, bits, _places(bits), strict=True):
        choice = (int(code[word]) >> shift) & ((1 << width) - 1)
        if choice:
            swap = int(members[choice - 1])
            yield int(swaps.group[swap]), int(swaps.column[swap])


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
