"""Nodes of the search: a knapsack with some groups decided, its dual bound, and its children."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpsearch_solvers.core import Core
from mpsearch_solvers.lagrangian import DualPoint, Knapsack, maximise
from mpsearch_solvers.listing import halve, list_sizes
from mpsearch_solvers.method import Run
from mpsearch_solvers.problem import Bools, Floats, Ints

# Beyond so many swaps the lists overflow whatever their excesses are.
_SWAPS = 700
_ZOOM = 24


@dataclass(frozen=True, eq=False)
class Part:
    """The undecided groups of a knapsack.

    Attributes:
        knapsack: Only the undecided groups; the limits are what the decided ones leave.
        groups: Their positions in the whole problem, shape (undecided,).
        columns: Whole-problem column of each of their columns, shape (undecided, options).
        decided: A whole choice; right for the decided groups.
        loss: Summed loss of the decided groups.
    """

    knapsack: Knapsack
    groups: Ints
    columns: Ints
    decided: Ints
    loss: float

    def whole(self, indices: Ints) -> Ints:
        """Return the whole choice for a choice of the undecided groups."""
        chosen = self.decided.copy()
        chosen[self.groups] = self.columns[np.arange(len(indices)), indices]
        return chosen

    def restricted(self, kept: Bools) -> Part:
        """Return the part with fewer options; groups with one option become decided.

        Args:
            kept: Options that remain, shape (undecided, options); at least one per group.
        """
        counts = kept.sum(axis=1)
        single = counts == 1
        column = kept.argmax(axis=1)
        decided = self.decided.copy()
        places = np.arange(len(kept))
        decided[self.groups[single]] = self.columns[places, column][single]
        gone = places[single]
        cost, loss = self.knapsack.cost, self.knapsack.loss
        limit = self.knapsack.limit - cost[:, gone, column[single]].sum(axis=1)
        left = places[~single]
        width = int(counts.max(initial=1))
        # Kept columns first, in their order, so that the part is as narrow as it can be.
        order = np.argsort(~kept[left], axis=1, kind="stable")[:, :width]
        offered = np.take_along_axis(kept[left], order, axis=1)
        losses = np.where(offered, np.take_along_axis(loss[left], order, axis=1), np.inf)
        costs = np.stack(
            [np.where(offered, np.take_along_axis(row[left], order, axis=1), 0.0) for row in cost]
        )
        return Part(
            Knapsack(losses, costs, limit),
            self.groups[left],
            np.take_along_axis(self.columns[left], order, axis=1),
            decided,
            self.loss + float(loss[gone, column[single]].sum()),
        )


def whole_part(knapsack: Knapsack) -> Part:
    """Return a part in which nothing is decided."""
    groups, width = knapsack.loss.shape
    columns = np.broadcast_to(np.arange(width), (groups, width))
    everything = np.arange(groups)
    return Part(knapsack, everything, columns, np.zeros(groups, dtype=np.intp), 0.0)


@dataclass(frozen=True, eq=False)
class Node:
    """A part with its dual bound.

    Attributes:
        part: The undecided groups.
        point: The dual at its best; None when nothing is undecided.
        visited: Every dual point on the way there, for rounding.
        bound: Lower bound on the loss of the whole, in scaled units.
        depth: Branchings above it.
    """

    part: Part
    point: DualPoint | None
    visited: tuple[DualPoint, ...]
    bound: float
    depth: int

    @cached_property
    def core(self) -> Core:
        """The dual point as a base choice with swaps."""
        assert self.point is not None
        return Core(self.part.knapsack, self.point)


def bound_part(
    part: Part, run: Run, start: Floats | None, ceiling: float, depth: int, reach: float = 4.0
) -> Node | None:
    """Compute a part's dual bound.

    Args:
        part: The undecided groups.
        run: Terms of the solve.
        start: Multipliers to start from, or None.
        ceiling: Loss above which the part is of no interest; `inf` for any.
        depth: Branchings above it.
        reach: How far from the start the multipliers are looked for first.

    Returns:
        The node, or None if its bound exceeds the ceiling or it cannot keep a limit.
    """
    knapsack = part.knapsack
    rounding = 1e-9 * np.maximum(1.0, np.abs(knapsack.limit))
    if not len(part.groups):
        if (knapsack.limit < -rounding).any() or part.loss > ceiling:
            return None
        return Node(part, None, (), part.loss, depth)
    cheapest = np.where(knapsack.allowed, knapsack.cost, np.inf).min(axis=2).sum(axis=1)
    if (cheapest > knapsack.limit + rounding).any():
        return None
    # A dual value above every choice's loss proves that the limits cannot be kept.
    most = part.loss + float(np.where(knapsack.allowed, knapsack.loss, 0.0).max(axis=1).sum())
    ceiling = min(ceiling, most + 1e-9 * max(1.0, abs(most)))
    point, visited = maximise(knapsack, run, start, ceiling - part.loss, reach)
    bound = part.loss + point.value
    if bound > ceiling:
        return None
    return Node(part, point, tuple(visited), bound, depth)


def branching_group(node: Node) -> int:
    """Return the undecided group on which the relaxation is most torn.

    That is the group whose mixed options differ most in priced cost; where the relaxation mixes
    nothing, the group whose cheapest swap costs least.
    """
    point = node.point
    assert point is not None
    core = node.core
    count = len(node.part.groups)
    shares = np.zeros(node.part.knapsack.loss.shape)
    for weight, indices in point.mixture:
        shares[np.arange(count), indices] += weight
    mixed = 1.0 - shares.max(axis=1)
    cost = node.part.knapsack.cost
    spread = np.zeros(count)
    for price, row in zip(point.multipliers.tolist(), cost, strict=True):
        mean = (shares * row).sum(axis=1)
        spread += price * (shares * np.abs(row - mean[:, None])).sum(axis=1)
    if (mixed > 1e-6).any() and spread[mixed > 1e-6].max() > 0.0:
        return int(np.where(mixed > 1e-6, spread, -1.0).argmax())
    swaps = core.excess.copy()
    swaps[np.arange(count), core.base] = np.inf
    return int(swaps.min(axis=1).argmin())


def children(node: Node, group: int, kept: Bools, options: list[int]) -> Iterator[Part]:
    """Yield the parts in which a group is decided, one per option.

    Args:
        node: The node to branch.
        group: Position of the group among the undecided.
        kept: Options that remain for the other groups, shape (undecided, options).
        options: The options of the group to try.

    Yields:
        One part per option.
    """
    for option in options:
        chosen = kept.copy()
        chosen[group] = False
        chosen[group, option] = True
        yield node.part.restricted(chosen)


def threshold_for(core: Core, size: int, most: float) -> float:
    """Return the largest threshold, up to `most`, at which both lists stay below a size.

    Args:
        core: Where the swaps come from.
        size: Partial choices allowed in each list.
        most: The largest threshold of interest.

    Returns:
        The threshold, by a count that errs on the safe side; 0 if none serves.
    """
    flat = core.excess[core.knapsack.allowed]
    if len(flat) > len(core.base) + _SWAPS:
        # The base choices' zeros come first; then the swaps by excess.
        place = len(core.base) + _SWAPS
        most = min(most, float(np.partition(flat, place)[place]))
    for _ in range(_ZOOM):
        if not most > 0.0:
            return 0.0
        swaps = core.swaps(most)
        sizes = [
            list_sizes([swaps.excess[members] for members in half], most) for half in halve(swaps)
        ]
        thresholds = sizes[0][0]
        largest = np.maximum(sizes[0][1], sizes[1][1])
        place = int(np.searchsorted(largest, size, side="right"))
        if place == len(thresholds):
            return most
        if place >= len(thresholds) // 16:
            return float(thresholds[place - 1])
        most = float(thresholds[2 * place + 8])
    return 0.0
