"""Allocating where neighbours whose options differ cost extra.

What an allocation spends of a resource is then a sum over groups plus a sum over pairs of groups,
c·[first is in A][second is in B], which solvers of separable problems cannot limit. Where loss adds
up over groups, the products are made linear and the problem is solved by branch and cut
(`mpsearch.conversion_problem`), which proves its answer.

Elsewhere, with a method asked for by name, or when time runs out, sums bound the pairs: each
product is replaced by a sum that is never below it and equals it at a given allocation: for
indicators a and b, a·b <= b where a = 0 there, <= a where b = 0, and <= (a + b)/2 where both or
neither hold. An allocation that keeps the budget with those sums keeps it with the pairs, and the
given allocation stays within reach, so that solving again around each answer never makes it worse
(majorize and minimize: Hunter and Lange, "A Tutorial on MM Algorithms", The American Statistician,
2004). The problem without the pairs gives a lower bound on the loss, since pairs only ever cost.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.schemas import Costs
from mpsearch_solvers import Solution
from mpsearch_solvers.method import relative_gap

__all__ = ["allocate_pairs", "bounded_by_sums", "without_conversions"]

EXACT = "conversions between unlike neighbours are solved for as further 0-1 variables"
SECONDS = 120.0
"""For both ways of solving together, where no time limit is given."""
ROUNDS = 20
ROUGH = 1e-3
"""Relative gap of the problems solved on the way; only the one without pairs is a bound."""
NOTE = (
    "extra costs of unlike neighbours are bounded by sums around the last answer and solved again "
    "until nothing improves; the proven bound leaves them out"
)
Columns = NDArray[np.integer[Any]]
Solved = Callable[[Costs, float | None, float | None], Solution]


def without_conversions(costs: Costs) -> Costs:
    """Leave out what unlike neighbours cost: a lower bound of every allocation's use.

    Args:
        costs: Prices.

    Returns:
        The prices of groups alone.
    """
    return costs.model_copy(update={"conversions": {}})


def bounded_by_sums(costs: Costs, columns: Columns) -> Costs:
    """Replace pairs by sums that are never below them, and equal at one allocation.

    Args:
        costs: Prices with conversions.
        columns: Option column of every group at that allocation.

    Returns:
        Prices of groups alone.
    """
    values = {resource: table.copy() for resource, table in costs.values.items()}
    for resource, pairs in costs.conversions.items():
        for pair in pairs:
            rows = [costs.groups.index(group) for group in pair.groups]
            masks = [
                np.array([option in chosen for option in costs.options])
                for chosen in (pair.first, pair.second)
            ]
            holds = [bool(mask[columns[row]]) for mask, row in zip(masks, rows, strict=True)]
            # Where one does not hold, the other alone bounds the product and keeps it at 0.
            shares = (0.5, 0.5) if holds[0] == holds[1] else (float(holds[1]), float(holds[0]))
            for row, mask, share in zip(rows, masks, shares, strict=True):
                values[resource][row] += np.where(mask, pair.cost * share, 0.0)
    return costs.model_copy(update={"values": values, "conversions": {}})


def allocate_pairs(
    costs: Costs,
    solved: Solved,
    offered: NDArray[np.bool_],
    limited: Collection[str],
    *,
    exact: Callable[[float], Solution] | None = None,
    time_limit: float | None = None,
) -> Solution:
    """Solve a problem whose budgets count what unlike neighbours cost.

    Args:
        costs: Prices with conversions.
        solved: Solves the problem with given prices of groups alone, to a gap, within seconds.
        offered: Bool mask of what groups may take, groups x options.
        limited: Resources with a budget.
        exact: Solves the problem with the pairs within seconds; None where it is not linear, or
            another method is asked for.
        time_limit: Seconds for everything; None: `SECONDS`.

    Returns:
        The best solution found. Its bound is proven with the pairs where they are solved for, and
        is that of the problem without them elsewhere. Status `unknown` where none was found and
        none is proven impossible.
    """
    clock = _Clock(time_limit)
    found = exact(clock.share(0.7)) if exact is not None else None
    if found is not None and found.indices is not None:
        # Duals of the sums around the answer: branch and cut has none.
        around = solved(bounded_by_sums(costs, found.indices), ROUGH, clock.share(0.5))
        reason = f"{EXACT}; shadow prices are those of sums around the answer"
        found = dataclasses.replace(found, shadow_prices=around.shadow_prices, reason=reason)
    if found is not None and found.status in {"optimal", "infeasible"}:
        return found
    rough = _majorized(costs, solved, offered, limited, clock)
    if found is None or rough.status == "infeasible":
        return rough
    answers = [each for each in (found, rough) if each.objective is not None]
    if not answers:
        return dataclasses.replace(rough, status="unknown")
    best = min(answers, key=lambda each: each.objective or 0.0)
    bounds = [each.bound for each in (found, rough) if each.bound is not None]
    return _certified(best, max(bounds, default=None))


def _majorized(
    costs: Costs,
    solved: Solved,
    offered: NDArray[np.bool_],
    limited: Collection[str],
    clock: _Clock,
) -> Solution:
    """Solve with sums around the last answer until nothing improves, from several starts."""
    relaxed = solved(without_conversions(costs), None, clock.share(0.5))
    if relaxed.indices is None:
        return relaxed
    best: Solution | None = None
    for start in _starts(costs, relaxed.indices, offered, limited):
        around = start
        for _ in range(ROUNDS):
            if clock.is_over:
                break
            found = solved(bounded_by_sums(costs, around), ROUGH, clock.share(0.5))
            if found.indices is None or found.objective is None:
                break
            same = np.array_equal(found.indices, around)
            around = found.indices
            better = best is None or best.objective is None or found.objective < best.objective
            if better:
                best = found
            if same or not better:
                break
    if best is None or best.objective is None:
        return dataclasses.replace(
            relaxed, status="unknown", indices=None, choice={}, objective=None, gap=None
        )
    proven = relaxed.status == "optimal" and best.objective <= (relaxed.objective or 0.0)
    best = dataclasses.replace(best, reason=f"{best.reason}; {NOTE}" if best.reason else NOTE)
    return _certified(best, relaxed.bound, status="optimal" if proven else "feasible")


def _certified(best: Solution, bound: float | None, status: str = "feasible") -> Solution:
    """Put a proven bound, and the gap to it, into a solution."""
    assert best.objective is not None
    if bound is None:
        return dataclasses.replace(best, status="feasible", bound=None, gap=None)
    gap = relative_gap(best.objective, bound)
    return dataclasses.replace(best, status=status, bound=min(bound, best.objective), gap=gap)


class _Clock:
    """What is left of the time allowed; each way of solving gets at least a moment."""

    def __init__(self, limit: float | None) -> None:
        self._ends = time.monotonic() + (SECONDS if limit is None else limit)

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._ends

    def share(self, part: float) -> float:
        """Return a part of the seconds that are left, above 0 as solvers require."""
        return max(part * (self._ends - time.monotonic()), 0.01)


def _starts(
    costs: Costs,
    relaxed: Columns,
    offered: NDArray[np.bool_],
    limited: Collection[str],
) -> Iterator[Columns]:
    """Go through allocations to start around: without pairs, all alike, cheapest of each."""
    yield relaxed
    for column in range(len(costs.options)):
        if offered[:, column].all():
            yield np.full(len(costs.groups), column)
    for resource in limited:
        if resource in costs.values:
            priced = np.where(offered, costs.values[resource], np.inf)
            yield np.argmin(priced, axis=1)
