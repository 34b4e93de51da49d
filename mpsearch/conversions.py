"""Allocating where neighbours whose options differ cost extra: sums that bound the pairs.

What an allocation spends of a resource is then a sum over groups plus a sum over pairs of groups,
c·[first is in A][second is in B], which solvers of separable problems cannot limit. Each product is
replaced by a sum that is never below it and equals it at a given allocation: for indicators a and
b, a·b <= b where a = 0 there, <= a where b = 0, and <= (a + b)/2 where both or neither hold. An
allocation that keeps the budget with those sums keeps it with the pairs, and the given allocation
stays within reach, so that solving again around each answer never makes it worse (majorize and
minimize: Hunter and Lange, "A Tutorial on MM Algorithms", The American Statistician, 2004). The
problem without the pairs gives a lower bound on the loss, since pairs only ever cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.schemas import Costs
from mpsearch_solvers import Solution

__all__ = ["allocate_pairs", "bounded_by_sums", "without_conversions"]

ROUNDS = 20
ROUGH = 1e-3
"""Relative gap of the problems solved on the way; only the one without pairs is a bound."""
NOTE = (
    "extra costs of unlike neighbours are bounded by sums around the last answer and solved again "
    "until nothing improves; the proven bound leaves them out"
)
Columns = NDArray[np.integer[Any]]


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
    solved: Callable[..., Solution],
    offered: NDArray[np.bool_],
    limited: Collection[str],
) -> Solution:
    """Solve a problem whose budgets count what unlike neighbours cost.

    Args:
        costs: Prices with conversions.
        solved: Solves the problem with given prices of groups alone, and to a gap if one is given.
        offered: Bool mask of what groups may take, groups x options.
        limited: Resources with a budget.

    Returns:
        The best solution found; its bound is that of the problem without pairs, and so is the
        whole answer where that one is not feasible. Status `unknown` where that one is feasible
        and none with pairs was found.
    """
    relaxed = solved(without_conversions(costs))
    if relaxed.indices is None:
        return relaxed
    best: Solution | None = None
    for start in _starts(costs, relaxed.indices, offered, limited):
        around = start
        for _ in range(ROUNDS):
            found = solved(bounded_by_sums(costs, around), ROUGH)
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
    if relaxed.bound is None:
        return dataclasses.replace(best, status="feasible", bound=None, gap=None)
    largest = max(abs(best.objective), abs(relaxed.bound))
    gap = 0.0 if best.objective == relaxed.bound else (best.objective - relaxed.bound) / largest
    proven = relaxed.status == "optimal" and best.objective <= (relaxed.objective or 0.0)
    return dataclasses.replace(
        best,
        status="optimal" if proven else "feasible",
        bound=relaxed.bound,
        gap=gap,
        reason=f"{best.reason}; {NOTE}" if best.reason else NOTE,
    )


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
