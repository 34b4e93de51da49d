"""The one definition of what an allocation loses and spends: `math.fsum` of the given numbers."""

from __future__ import annotations

import math

import numpy as np

from mpsearch_solvers.goal import LOSS
from mpsearch_solvers.problem import Floats, Ints, Problem


def pick(table: Floats, indices: Ints) -> Floats:
    """Return the entry of every group's chosen option: (groups, options) and (groups,)."""
    chosen: Floats = np.take_along_axis(table, indices[:, None], axis=1)[:, 0]
    return chosen


def total_loss(problem: Problem, indices: Ints) -> float:
    """Return the summed loss of an allocation, interactions included."""
    terms = pick(problem.loss, indices).tolist()
    pairs = problem.interactions
    if pairs is not None:
        both = (indices[pairs.groups] == pairs.options).all(axis=1)
        terms += pairs.loss[both].tolist()
    return math.fsum(terms)


def step_usages(problem: Problem, resource: str, indices: Ints) -> list[float]:
    """Return what a peak resource occupies at every step."""
    peak = problem.peaks[resource]
    groups = np.arange(len(problem.groups))
    chosen = peak.cost[:, groups, indices]
    return [
        math.fsum([base, *row])
        for base, row in zip(peak.base.tolist(), chosen.tolist(), strict=True)
    ]


def usage_of(problem: Problem, resource: str, indices: Ints) -> float:
    """Return the usage of one resource: a sum over groups, or the peak over steps."""
    if resource in problem.peaks:
        return max(step_usages(problem, resource, indices))
    return math.fsum(pick(problem.costs[resource], indices).tolist())


def usages(problem: Problem, indices: Ints) -> dict[str, float]:
    """Return the usage of every resource that the chosen options price."""
    spent = {resource: usage_of(problem, resource, indices) for resource in problem.resources}
    return {resource: usage for resource, usage in spent.items() if not math.isnan(usage)}


def objective_of(problem: Problem, indices: Ints) -> float:
    """Return the value of the problem's goal at an allocation."""
    goal = problem.goal
    if goal.is_worst_loss:
        return float(pick(problem.loss, indices).max())
    values = {
        name: total_loss(problem, indices) if name == LOSS else usage_of(problem, name, indices)
        for name in goal.weights
    }
    if isinstance(goal.minimize, str):
        return values[goal.minimize]
    return math.fsum(weight * values[name] for name, weight in goal.weights.items())


def is_within_limits(problem: Problem, indices: Ints) -> bool:
    """Return whether an allocation keeps every limit, by the exact sums of the given numbers."""
    for resource, limit in problem.limits.items():
        usage = usage_of(problem, resource, indices)
        if limit.max is not None and not usage <= limit.max:
            return False
        if limit.min is not None and not usage >= limit.min:
            return False
    most = problem.goal.max_loss
    return most is None or total_loss(problem, indices) <= most
