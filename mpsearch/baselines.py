"""Rules of thumb for precision allocation, each at its best within the same budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.schemas import Costs, Profile

__all__ = ["RANDOM_DRAWS", "Rule", "Rules"]

RANDOM_DRAWS = 20
Columns = NDArray[np.intp]


@dataclass(frozen=True)
class Rule:
    """What a rule of thumb proposes.

    Attributes:
        name: `uniform`, `head-high`, `tail-high` or `random`.
        description: What was done, in words.
        candidates: Allocations to measure, as option columns per group; none when the rule has no
            allocation within the budgets.
    """

    name: str
    description: str
    candidates: tuple[Columns, ...]


class Rules:
    """The four baselines of one problem.

    Uniform offers every option that fits and the best measured one counts. Head-high and tail-high
    give the dearest option to the largest number of first or last groups that fits and the
    cheapest to the rest. Random draws feasible allocations uniformly over options, repaired by
    lowering random groups, and the median counts.
    """

    def __init__(self, profile: Profile, costs: Costs, limits: Mapping[str, float]) -> None:
        """Prepare the tables.

        Args:
            profile: Names the groups, in execution order, and the options they are offered.
            costs: Prices.
            limits: Budget of each limited resource, in base units.
        """
        self._options = profile.options
        self._offered = profile.offered & costs.offered(limits)
        # Sums are one row, peaks one for every step; all costs add up along a row.
        self._rows = [row for name, limit in limits.items() for row in _rows(costs, name, limit)]
        self._order = self._relative_cost()

    def all(self, seed: int) -> list[Rule]:
        """Propose by every rule.

        Args:
            seed: Seed of the random allocations.

        Returns:
            The rules, those without a feasible allocation included.
        """
        return [self.uniform(), self.head_high(), self.tail_high(), self.random(seed)]

    def uniform(self) -> Rule:
        """Give every group the same option.

        Returns:
            One candidate for every option that all groups are offered and that fits.
        """
        fitting = [
            np.full(len(self._offered), column)
            for column in range(len(self._options))
            if self._offered[:, column].all() and self.fits(np.full(len(self._offered), column))
        ]
        names = ", ".join(self._options[candidate[0]] for candidate in fitting)
        found = f"best of the uniform options that fit: {names}" if fitting else "no option fits"
        return Rule("uniform", found, tuple(fitting))

    def head_high(self) -> Rule:
        """Give the first groups the dearest option and the rest the cheapest.

        Returns:
            The candidate with the most dear groups that fits.
        """
        return self._split("head-high", "first", reverse=False)

    def tail_high(self) -> Rule:
        """Give the last groups the dearest option and the rest the cheapest.

        Returns:
            The candidate with the most dear groups that fits.
        """
        return self._split("tail-high", "last", reverse=True)

    def random(self, seed: int) -> Rule:
        """Draw feasible allocations.

        Args:
            seed: Seed of the draws.

        Returns:
            Up to 20 candidates; none when even the cheapest allocation does not fit.
        """
        generator = np.random.default_rng(seed)
        drawn = [self._draw(generator) for _ in range(RANDOM_DRAWS)]
        found = tuple(candidate for candidate in drawn if candidate is not None)
        return Rule("random", f"median of {len(found)} random allocations that fit", found)

    def fits(self, columns: Columns) -> bool:
        """Check an allocation against every budget with exact sums.

        Args:
            columns: Option column per group.

        Returns:
            Whether every budget is met.
        """
        rows = np.arange(len(columns))
        return all(
            math.fsum([base, *table[rows, columns]]) <= limit for table, base, limit in self._rows
        )

    def _relative_cost(self) -> NDArray[np.float64]:
        """Rank options within a group by the share of each budget they take, summed."""
        total = np.zeros(self._offered.shape)
        for table, _, limit in self._rows:
            total += table / limit
        return np.where(self._offered, total, np.nan)

    def _split(self, name: str, which: str, *, reverse: bool) -> Rule:
        cheapest = np.nanargmin(self._order, axis=1)
        dearest = np.nanargmax(self._order, axis=1)
        positions = np.arange(len(cheapest))
        if reverse:
            positions = positions[::-1]
        for count in range(len(cheapest), -1, -1):
            columns = cheapest.copy()
            chosen = positions[:count]
            columns[chosen] = dearest[chosen]
            if self.fits(columns):
                return Rule(
                    name,
                    f"{which} {count} of {len(columns)} groups at the dearest option, "
                    "the rest at the cheapest",
                    (columns,),
                )
        return Rule(name, "not even the cheapest allocation fits", ())

    def _draw(self, generator: np.random.Generator) -> Columns | None:
        columns = np.array([generator.choice(np.flatnonzero(offered)) for offered in self._offered])
        waiting = generator.permutation(len(columns)).tolist()
        cheaper = [self._cheaper(group, columns[group]) for group in range(len(columns))]
        while not self.fits(columns):
            waiting = [group for group in waiting if len(cheaper[group])]
            if not waiting:
                return None
            group = waiting[int(generator.integers(len(waiting)))]
            columns[group] = generator.choice(cheaper[group])
            cheaper[group] = self._cheaper(group, columns[group])
        return columns

    def _cheaper(self, group: int, column: int) -> Columns:
        price = self._order[group]
        return np.flatnonzero(price < price[column])


def _rows(
    costs: Costs, resource: str, limit: float
) -> list[tuple[NDArray[np.float64], float, float]]:
    """Return costs, groups x options, what is used anyway, and the limit, of every row."""
    if resource in costs.values:
        return [(costs.values[resource], 0.0, limit)]
    steps, base = costs.peak_rows(resource)
    return [(step, start, limit) for step, start in zip(steps, base.tolist(), strict=True)]
