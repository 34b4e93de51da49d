"""Saying why no allocation meets the budgets, with the least that could be achieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from mpsearch.budgets import Budget, format_amount
from mpsearch.errors import InfeasibleError, UnsolvedError
from mpsearch.schemas import Costs
from mpsearch_solvers import Solution

__all__ = ["least_use", "refuse", "refuse_below_least"]

Offered = NDArray[np.bool_]


def least_use(costs: Costs, resource: str, offered: Offered | None = None) -> float:
    """Compute the least achievable use of one resource alone.

    Args:
        costs: Prices.
        resource: The resource.
        offered: Bool mask of what groups are offered, groups x options; None: everything.

    Returns:
        With every group at its cheapest option, in the resource's unit.
    """
    return costs.extreme(resource, offered)


def refuse_below_least(
    budgets: Sequence[Budget],
    limits: Mapping[str, float],
    costs: Costs,
    offered: Offered | None = None,
) -> None:
    """Refuse budgets that are too small each on its own.

    Args:
        budgets: What was asked for.
        limits: What it means, in base units.
        costs: Prices.
        offered: Bool mask of what groups are offered.

    Raises:
        InfeasibleError: A limit is below the least achievable use; names that use.
    """
    least = {b.resource: least_use(costs, b.resource, offered) for b in budgets}
    lines = [
        f"budget {_written(b, limits, costs)} is below the least achievable "
        f"{format_amount(least[b.resource], costs.units[b.resource])} "
        f"({_cheapest(costs, b.resource, offered)}); raise it or add a cheaper option"
        for b in budgets
        if limits[b.resource] < least[b.resource]
    ]
    if lines:
        raise InfeasibleError("\n".join(lines), least)


def refuse(
    solution: Solution,
    budgets: Sequence[Budget],
    limits: Mapping[str, float],
    costs: Costs,
    offered: Offered,
) -> NoReturn:
    """Say why there is no answer.

    Args:
        solution: A solution without a choice.
        budgets: What was asked for.
        limits: What it means, in base units.
        costs: Prices.
        offered: Bool mask of what groups are offered.

    Raises:
        UnsolvedError: The time limit ran out first.
        InfeasibleError: There is none; says what each budget could reach within the others.
    """
    if solution.status != "infeasible":
        raise UnsolvedError(
            "the time limit ran out before any allocation within the budgets was found; "
            "raise the time limit or a budget"
        )
    refuse_below_least(budgets, limits, costs, offered)
    given_others = solution.minimum_given_others or {}
    clash = []
    for b in budgets:
        least = given_others.get(b.resource)
        unit = costs.units[b.resource]
        reach = "does not exist" if least is None else f"is {format_amount(least, unit)}"
        clash.append(f"{_written(b, limits, costs)}: least within the others {reach}")
    raise InfeasibleError(
        "no allocation meets these budgets together\n" + "\n".join(clash),
        {b.resource: least_use(costs, b.resource, offered) for b in budgets},
    )


def _written(budget: Budget, limits: Mapping[str, float], costs: Costs) -> str:
    meant = format_amount(limits[budget.resource], costs.units[budget.resource])
    return f"{budget.resource}={budget.text} ({meant})"


def _cheapest(costs: Costs, resource: str, offered: Offered | None) -> str:
    mask = costs.offered([resource]) if offered is None else offered
    if resource in costs.values:
        table = costs.values[resource]
    else:
        # A peak is lowest with every group lowest in every step it takes part in.
        table = costs.peak_rows(resource)[0].sum(axis=0)
    columns = set(np.where(mask, table, np.inf).argmin(axis=1).tolist())
    if len(columns) == 1:
        return f"all groups at {costs.options[columns.pop()]}"
    return "every group at its cheapest option"
