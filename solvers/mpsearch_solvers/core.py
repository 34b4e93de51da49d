"""The dual's best point as a base choice and the swaps away from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.lagrangian import DualPoint, Knapsack
from mpsearch_solvers.problem import Bools, Floats, Ints


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
