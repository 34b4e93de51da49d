"""`solve`: compile, choose a method, run it, check its answer by exact sums, certify."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mpsearch_solvers.errors import MethodError, ProblemError
from mpsearch_solvers.evaluation import objective_of, step_usages, total_loss, usages
from mpsearch_solvers.goal import LOSS
from mpsearch_solvers.infeasibility import explain
from mpsearch_solvers.method import Method, Outcome, Progress, Run, relative_gap
from mpsearch_solvers.model import Model, compile_problem
from mpsearch_solvers.narrowing import solve_narrowed
from mpsearch_solvers.problem import Floats, Ints, Problem
from mpsearch_solvers.registry import AUTO, load_method
from mpsearch_solvers.selection import select
from mpsearch_solvers.solution import FEASIBLE, INFEASIBLE, OPTIMAL, UNKNOWN, Solution
from mpsearch_solvers.worst_loss import solve_worst_loss


def solve(
    problem: Problem,
    method: str | Method = AUTO,
    gap: float = 1e-6,
    time_limit: float | None = None,
    seed: int = 0,
    *,
    progress: Callable[[Progress], None] | None = None,
    start: Solution | None = None,
) -> Solution:
    """Find the best allocation, with a certificate.

    Args:
        problem: What to solve.
        method: Name of a method, `auto`, or a configured method object.
        gap: Relative gap at which an answer counts as optimal; 0 asks for a full proof.
        time_limit: Seconds after which the best answer so far is returned; None for no limit.
        seed: Seed of methods that draw random numbers.
        progress: Called now and then with bound and incumbent, from this thread.
        start: A solution of a neighbouring problem (other limits) to start from.

    Returns:
        The solution; `status` says what is proven.

    Raises:
        ProblemError: If fixed, forbidden and tied options leave a group nothing to choose, or if
            `problem` is no Problem.
        MethodError: If the method is unknown or cannot solve this problem, or gap or
            time_limit are out of range.
    """
    _check_kind(problem)
    if not _is_number(gap) or not 0 <= gap < 1:
        raise MethodError(f"gap is {gap!r}; give a relative gap from 0 (full proof) to below 1")
    if time_limit is not None and (not _is_number(time_limit) or not time_limit > 0):
        raise MethodError(f"time_limit is {time_limit!r}; give seconds above 0, or None")
    run = Run(gap=gap, time_limit=time_limit, seed=seed, report=progress)
    model = compile_problem(problem)
    chosen, reason = _choose(model, method)
    refusal = chosen.refusal(model)
    if refusal is not None:
        raise MethodError(f"method {chosen.name!r} cannot solve this problem: {refusal}")
    if start is not None and start.indices is not None:
        run = replace(run, start=model.contract(start.indices), multipliers=_duals(model, start))
    if problem.goal.is_worst_loss:
        outcome = solve_worst_loss(model, chosen, run)
    else:
        outcome = solve_narrowed(chosen, model, run)
    return _certify(model, chosen, reason, outcome, run)


def _check_kind(problem: object) -> None:
    if not isinstance(problem, Problem):
        kind = type(problem).__name__
        raise ProblemError("", f"solve takes a Problem, not {kind}; see Problem.from_dict")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _choose(model: Model, method: str | Method) -> tuple[Method, str]:
    if not isinstance(method, str):
        if not hasattr(method, "solve"):
            raise MethodError(f"method is {method!r}; give a name or a method object")
        return method, ""
    if method != AUTO:
        return load_method(method), ""
    name, reason = select(model)
    return load_method(name), reason


def _duals(model: Model, start: Solution) -> Floats | None:
    """Return multipliers per row from a neighbour's shadow prices."""
    prices = start.shadow_prices
    if not prices or any(row.step is not None for row in model.rows):
        return None
    signs = {"max": 1.0, "min": -1.0}
    values = [max(0.0, signs[row.side] * prices.get(row.resource, 0.0)) for row in model.rows]
    return np.array(values)


def _certify(model: Model, method: Method, reason: str, outcome: Outcome, run: Run) -> Solution:
    """Turn an outcome into a solution; trust nothing about it but its bound."""
    problem = model.problem
    if outcome.indices is None:
        found = Solution(
            status=INFEASIBLE if outcome.exhausted else UNKNOWN,
            bound=None if outcome.exhausted else outcome.bound,
            method=method.name,
            reason=reason,
            solver=outcome.solver,
            note=outcome.note,
        )
        if outcome.exhausted:
            found = explain(model, found, run)
        return replace(found, seconds=run.seconds)
    if not model.is_feasible(outcome.indices):
        raise AssertionError(f"method {method.name!r} returned an allocation over its budget")
    indices = model.expand(outcome.indices)
    objective = objective_of(problem, indices)
    bound = outcome.bound
    if bound is not None:
        bound = min(bound, objective)
    gap = None if bound is None else relative_gap(objective, bound)
    proven = gap is not None and gap <= run.gap
    return Solution(
        status=OPTIMAL if proven else FEASIBLE,
        objective=objective,
        bound=bound,
        gap=gap,
        choice=choice_names(problem, indices),
        indices=indices,
        usage=usages(problem, indices),
        loss=total_loss(problem, indices),
        method=method.name,
        reason=reason,
        solver=outcome.solver,
        seconds=run.seconds,
        shadow_prices=_shadow_prices(model, outcome.multipliers),
        binding_steps={name: _binding_step(problem, name, indices) for name in problem.peaks},
        note=outcome.note,
    )


def choice_names(problem: Problem, indices: Ints) -> dict[str, str]:
    """Return the option name of every group for its chosen column."""
    menus = zip(problem.groups, problem.options, indices.tolist(), strict=True)
    return {group: menu[column] for group, menu, column in menus}


def _binding_step(problem: Problem, resource: str, indices: Ints) -> str:
    steps = step_usages(problem, resource, indices)
    return problem.peaks[resource].steps[int(np.argmax(steps))]


def _shadow_prices(model: Model, multipliers: Floats | None) -> dict[str, float]:
    """Return the goal saved per unit of each budget; a peak's price is that of all its steps.

    A price beyond the range of float64 (a unit far larger than all costs) is left out.
    """
    if multipliers is None:
        return {}
    prices: dict[str, float] = {}
    for row, multiplier in zip(model.rows, multipliers.tolist(), strict=True):
        if row.epigraph:
            continue
        sign = 1.0 if row.side == "max" else -1.0
        name = "max_loss" if row.resource == LOSS else row.resource
        prices[name] = prices.get(name, 0.0) + sign * multiplier
    return {name: price for name, price in prices.items() if math.isfinite(price)}
