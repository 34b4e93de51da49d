"""Why nothing is feasible: the least each limit could be, and which limits clash."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mpsearch_solvers.evaluation import usage_of
from mpsearch_solvers.goal import Goal
from mpsearch_solvers.method import Run
from mpsearch_solvers.model import Model, compile_problem
from mpsearch_solvers.narrowing import solve_narrowed
from mpsearch_solvers.problem import Limit, Problem
from mpsearch_solvers.registry import load_method
from mpsearch_solvers.selection import select
from mpsearch_solvers.solution import Solution


def explain(model: Model, found: Solution, run: Run) -> Solution:
    """Add the analysis to an infeasible solution.

    Args:
        model: The compiled problem that was proven infeasible.
        found: The solution so far.
        run: Terms of the solve; the analysis stops with its time limit.

    Returns:
        The solution with `minimum`, `maximum`, `minimum_given_others` and `conflict`.
    """
    problem = _plain(model.problem)
    minimum, maximum = _alone(problem, run)
    given, is_complete = _given_others(problem, run)
    conflict, is_minimal = _conflict(problem, given, run)
    notes = [found.note] if found.note else []
    if not (is_complete and is_minimal):
        notes.append("the time limit stopped the analysis of the conflict")
    return replace(
        found,
        minimum=minimum,
        maximum=maximum,
        minimum_given_others=given,
        conflict=conflict,
        note="; ".join(notes),
    )


GAP = 1e-6
"""Widest gap of a value that is called the least achievable."""

_MAX_LOSS = "loss"


def _plain(problem: Problem) -> Problem:
    """Return the problem with the loss limit turned into a resource of its own."""
    most = problem.goal.max_loss
    costs, limits = dict(problem.costs), dict(problem.limits)
    if most is not None:
        costs[_MAX_LOSS] = np.where(problem.allowed, problem.loss, 0.0)
        limits[_MAX_LOSS] = Limit(max=most)
    return replace(problem, costs=costs, limits=limits, goal=Goal(), interactions=None)


def _alone(problem: Problem, run: Run) -> tuple[dict[str, float], dict[str, float]]:
    least, most = {}, {}
    for resource, limit in problem.limits.items():
        if limit.max is not None:
            value, is_proven = _extreme(problem, resource, (), 1.0, run)
            if value is not None and is_proven:
                least[resource] = value
        if limit.min is not None:
            value, is_proven = _extreme(problem, resource, (), -1.0, run)
            if value is not None and is_proven:
                most[resource] = value
    return least, most


def _given_others(problem: Problem, run: Run) -> tuple[dict[str, float | None], bool]:
    given: dict[str, float | None] = {}
    for resource, limit in problem.limits.items():
        others = [name for name in problem.limits if name != resource]
        sign = 1.0 if limit.max is not None else -1.0
        value, is_proven = _extreme(problem, resource, others, sign, run)
        if not is_proven:
            return given, False
        given[resource] = value
    return given, True


def _conflict(
    problem: Problem, given: dict[str, float | None], run: Run
) -> tuple[tuple[str, ...], bool]:
    """Drop limits one by one while the rest still clash; what remains has none to spare."""
    clashing = list(problem.limits)
    for resource in problem.limits:
        others = [name for name in clashing if name != resource]
        if len(others) == len(problem.limits) - 1 and resource in given:
            is_needed: bool | None = given[resource] is not None
        elif not others:
            is_needed = True
        else:
            value, is_proven = _extreme(problem, resource, others, 1.0, run)
            # Whatever was found shows that the others can be met together, the least or not.
            is_needed = True if value is not None else False if is_proven else None
        if is_needed is None:
            return tuple(clashing), False
        if not is_needed:
            clashing = others
    return tuple(clashing), True


def _extreme(
    problem: Problem, resource: str, kept: Iterable[str], sign: float, run: Run
) -> tuple[float | None, bool]:
    """Return the least (sign 1) or most (-1) usage under some limits, and whether it is proven."""
    if run.is_over:
        return None, False
    limits = {name: problem.limits[name] for name in kept}
    goal = Goal(resource if sign > 0 else {resource: sign})
    model = compile_problem(replace(problem, limits=limits, goal=goal))
    if not model.rows:
        indices = model.objective.argmin(axis=1)
        return usage_of(problem, resource, model.expand(indices)), True
    method = load_method(select(model)[0])
    gap = min(run.gap, GAP)  # a coarse answer may do, a coarse "least achievable" may not
    terms = replace(run, report=None, start=None, multipliers=None, gap=gap)
    outcome = solve_narrowed(method, model, terms)
    if outcome.indices is None:
        return None, outcome.exhausted
    return usage_of(problem, resource, model.expand(outcome.indices)), outcome.exhausted
