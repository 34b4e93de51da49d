"""From scores, prices and budgets to an allocation; needs no torch and no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mpsearch.budgets import Budget, limit_of, parse_budgets
from mpsearch.conversion_frontier import paired_points, with_exact_use
from mpsearch.conversion_problem import paired_problem
from mpsearch.conversions import allocate_pairs, bounded_by_sums, without_conversions
from mpsearch.errors import (
    DependencyError,
    DocumentError,
    InputError,
    MismatchError,
    UnknownNameError,
    UnsolvedError,
)
from mpsearch.posing import Monotone, problem_of
from mpsearch.refusing import least_use, refuse, refuse_below_least
from mpsearch.schemas import Allocation, BudgetUse, Costs, Frontier, FrontierPoint, Profile
from mpsearch_solvers import (
    BackendError,
    MethodError,
    ProblemError,
    Solution,
    solve,
)
from mpsearch_solvers import frontier as solve_frontier

__all__ = [
    "Monotone",
    "allocate",
    "as_costs",
    "as_profile",
    "check_budgets",
    "check_match",
    "frontier",
    "translated",
]

_ANSWERED = {"optimal", "feasible"}


def allocate(
    profile: Profile | str | Path,
    costs: Costs | str | Path,
    budget: Mapping[str, str | float],
    *,
    method: str = "auto",
    gap: float = 1e-6,
    time_limit: float | None = None,
    seed: int = 0,
    monotone: Monotone = "keep",
    on_solver_progress: Callable[[Any], None] | None = None,
) -> Allocation:
    """Find the allocation of least predicted loss within budgets, with a certificate.

    Args:
        profile: Predicted losses, or the path of a saved profile.
        costs: Prices, or the path of saved costs.
        budget: Resource -> amount: `"0.25x"`, `"3 MB"`, `"50%"`, or a number in the base unit.
        method: Solver method, `auto` to choose by the problem.
        gap: Relative gap to prove.
        time_limit: Seconds for the solver; the best answer so far is returned then.
        seed: Seed of randomised methods.
        monotone: `clamp` makes losses non-increasing along a group's options in order of their
            weight memory (or the first resource priced) before solving; `keep` takes them as they
            are.
        on_solver_progress: Called with the solver's progress reports.

    Returns:
        The allocation, its budgets checked in exact sums of the original costs.

    Raises:
        BudgetError: A budget cannot be read or is not positive.
        MismatchError: Profile and costs are of different models or menus.
        InfeasibleError: No allocation meets every budget; names the least achievable use.
        UnsolvedError: None was found, and none is proven impossible.
        UnknownNameError: `monotone` is neither `keep` nor `clamp`.
    """
    if monotone not in get_args(Monotone):
        raise UnknownNameError("value of monotone", monotone, get_args(Monotone))
    profile, costs = as_profile(profile), as_costs(costs)
    check_match(profile, costs)
    budgets = parse_budgets(budget)
    offered = _offered(profile, costs, [b.resource for b in budgets])
    limits = {b.resource: limit_of(b, costs, offered) for b in budgets}

    def solved(prices: Costs, asked: float | None, seconds: float | None) -> Solution:
        return solve(
            problem_of(profile, prices, limits, monotone, offered),
            method=method,
            gap=gap if asked is None else asked,
            time_limit=seconds,
            seed=seed,
            progress=on_solver_progress,
        )

    def exact(seconds: float) -> Solution:
        plain = problem_of(profile, without_conversions(costs), limits, monotone, offered)
        return paired_problem(plain, costs, limits).solve(
            gap=gap, seconds=seconds, seed=seed, progress=on_solver_progress
        )

    linear = method in {"auto", "ilp"} and profile.interactions is None
    with translated():
        if set(limits) & set(costs.conversions):
            solution = allocate_pairs(
                costs,
                solved,
                offered,
                list(limits),
                exact=exact if linear else None,
                time_limit=time_limit,
            )
        else:
            solution = solved(costs, gap, time_limit)
    if solution.status == "unknown" and set(limits) & set(costs.conversions):
        raise UnsolvedError(
            "no allocation within the budgets was found once conversions between unlike "
            "neighbours are counted; without them there is one, so none is proven impossible. "
            "Raise the time limit or a budget, or group neighbours"
        )
    if solution.status not in _ANSWERED:
        refuse(solution, budgets, limits, costs, offered)
    answer = _allocation(profile, costs, budgets, limits, solution, monotone, seed, offered)
    return answer.solved_from(profile, costs)


def frontier(
    profile: Profile | str | Path,
    costs: Costs | str | Path,
    resource: str = "weight_memory",
    *,
    budget: Mapping[str, str | float] | None = None,
    points: int | None = None,
    unsupported: bool = False,
    monotone: Monotone = "keep",
) -> Frontier:
    """Trace the Pareto-optimal allocations between predicted loss and one resource.

    Args:
        profile: Predicted losses, or the path of a saved profile.
        costs: Prices, or the path of saved costs.
        resource: The resource to trade loss against.
        budget: Budgets of other resources, which hold at every point. One of the traced resource
            itself is set aside, since the curve runs over it.
        points: Thin the curve to about so many points; None: all supported points, or a dozen where
            conversions between neighbours count, each of which is a solve of its own.
        unsupported: Also find the points between supported ones, one solve each.
        monotone: As in `allocate`.

    Returns:
        Points from the cheapest to the dearest, and the uniform allocations to compare with.

    Raises:
        UnknownNameError: The resource is not priced.
        MismatchError: Profile and costs are of different models or menus.
        InfeasibleError: The budgets of other resources cannot be met.
    """
    profile, costs = as_profile(profile), as_costs(costs)
    check_match(profile, costs)
    if resource not in costs.resources:
        raise UnknownNameError("resource", resource, costs.resources)
    budgets = [b for b in parse_budgets(budget) if b.resource != resource] if budget else []
    offered = _offered(profile, costs, [resource, *(b.resource for b in budgets)])
    limits = {b.resource: limit_of(b, costs, offered) for b in budgets}
    # Conversions included, so that the traced resource is never what limits.
    extra = math.fsum(pair.cost for pair in costs.conversions.get(resource, ()))
    reach = {resource: costs.extreme(resource, offered, least=False) + extra} | limits
    paired = [name for name in reach if name in costs.conversions]
    with translated():
        if paired and profile.interactions is None:
            plain = problem_of(profile, without_conversions(costs), reach, monotone, offered)
            solutions = paired_points(paired_problem(plain, costs, paired), resource, points)
        else:
            # Sums that bound the pairs around the cheapest allocation, none where there are none.
            table = costs.values[paired[0]] if paired else np.zeros(offered.shape)
            cheapest = np.argmin(np.where(offered, table, np.inf), axis=1)
            sums = bounded_by_sums(costs, cheapest)
            problem = problem_of(profile, sums, reach, monotone, offered)
            solutions = list(solve_frontier(problem, resource, points, unsupported=unsupported))
            if paired:
                solutions = with_exact_use(solutions, costs, resource)
    if solutions and solutions[0].status not in _ANSWERED:
        refuse(solutions[0], budgets, limits, costs, offered)
    uniform = {}
    for column, option in enumerate(profile.options):
        same = np.full(len(profile.groups), column)
        fits = all(costs.usage(name, same) <= limit for name, limit in limits.items())
        if fits and offered[:, column].all():
            uniform[option] = FrontierPoint(
                usage=costs.usage(resource, same),
                predicted_loss=profile.predicted([column] * len(profile.groups)),
                bound=None,
                gap=None,
                status="feasible",
                groups=dict.fromkeys(profile.groups, option),
            )
    return Frontier(
        resource=resource,
        unit=costs.units[resource],
        points=[_point(solution, resource) for solution in solutions],
        uniform=uniform,
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn the solvers' errors into those that carry exit codes.

    Yields:
        Nothing.

    Raises:
        DocumentError: The problem is broken.
        InputError: The method or one of its settings cannot be used here.
        DependencyError: A solver is missing or failed.
    """
    try:
        yield
    except ProblemError as error:
        raise DocumentError(str(error)) from error
    except MethodError as error:
        raise InputError(str(error)) from error
    except BackendError as error:
        raise DependencyError(str(error)) from error


def check_budgets(budget: Mapping[str, str | float], costs: Costs) -> None:
    """Refuse budgets that no scores could make feasible.

    Args:
        budget: As in `allocate`.
        costs: Prices.

    Raises:
        InfeasibleError: A budget is below the least achievable use of its resource.
        InputError: A group has no option that the device runs and every budget can price.
    """
    budgets = parse_budgets(budget)
    offered = _offered(None, costs, [b.resource for b in budgets])
    limits = {b.resource: limit_of(b, costs, offered) for b in budgets}
    refuse_below_least(budgets, limits, costs, offered)


def as_profile(profile: Profile | str | Path) -> Profile:
    """Take a profile or load one.

    Args:
        profile: A profile or the path of one.

    Returns:
        The profile.
    """
    return profile if isinstance(profile, Profile) else Profile.load(profile)


def as_costs(costs: Costs | str | Path) -> Costs:
    """Take costs or load them.

    Args:
        costs: Costs or the path of some.

    Returns:
        The costs.
    """
    return costs if isinstance(costs, Costs) else Costs.load(costs)


def check_match(profile: Profile, costs: Costs) -> None:
    """Refuse scores and prices that do not belong together.

    Args:
        profile: Predicted losses.
        costs: Prices.

    Raises:
        MismatchError: Groups, options or models differ; names the first difference.
    """
    for what, ours, theirs in (
        ("groups", profile.groups, costs.groups),
        ("options", profile.options, costs.options),
    ):
        if ours != theirs:
            odd = next(
                (name for name in [*ours, *theirs] if (name in ours) != (name in theirs)), None
            )
            shown = f"{odd!r} is in one only" if odd else "their order differs"
            raise MismatchError(f"profile and costs have different {what}: {shown}")
    if profile.model and costs.model and profile.model.fingerprint != costs.model.fingerprint:
        raise MismatchError(
            f"the profile is of model {profile.model.name} "
            f"({profile.model.fingerprint[:12]}), the costs are of {costs.model.name} "
            f"({costs.model.fingerprint[:12]})"
        )


def _offered(profile: Profile | None, costs: Costs, limited: Sequence[str]) -> NDArray[np.bool_]:
    """Return what is both scored and to be had on the device; refuse a group left with nothing."""
    for resource in limited:
        if resource not in costs.resources:
            raise UnknownNameError("resource", resource, costs.resources)
    offered = costs.offered(limited)
    if profile is not None:
        offered &= profile.offered
    empty = np.flatnonzero(~offered.any(axis=1))
    if empty.size:
        group = costs.groups[empty[0]]
        reasons = "; ".join(
            f"{option}: {reason}" for option, reason in costs.unavailable.get(group, {}).items()
        )
        unpriced = [name for name in limited if name in costs.values]
        raise InputError(
            f"group {group} is left without an option on {costs.hardware or 'this cost table'}: "
            + (reasons or f"none of those scored has a price in {', '.join(unpriced)}")
            + "; offer another option, or skip its layers"
        )
    return offered


def _allocation(
    profile: Profile,
    costs: Costs,
    budgets: list[Budget],
    limits: Mapping[str, float],
    solution: Solution,
    monotone: Monotone,
    seed: int,
    offered: NDArray[np.bool_],
) -> Allocation:
    assert solution.indices is not None
    spent = {resource: costs.usage(resource, solution.indices) for resource in costs.resources}
    # What was chosen may have no price in a resource without a budget.
    usage = {resource: value for resource, value in spent.items() if not math.isnan(value)}
    layers = {
        layer: solution.choice[group]
        for group in profile.groups
        for layer in profile.layers_of(group)
    }
    assert solution.objective is not None
    return Allocation(
        layers=layers,
        groups=dict(solution.choice),
        status="optimal" if solution.status == "optimal" else "feasible",
        objective=solution.objective,
        bound=solution.bound,
        gap=solution.gap,
        predicted_loss=profile.predicted(solution.indices.tolist()),
        budgets={
            b.resource: BudgetUse(
                requested=b.text,
                limit=limits[b.resource],
                usage=usage[b.resource],
                unit=costs.units[b.resource],
                least=least_use(costs, b.resource, offered),
                tolerance=costs.tolerance.get(b.resource),
                binding_step=solution.binding_steps.get(b.resource),
            )
            for b in budgets
        },
        costs=usage,
        units=costs.units,
        fixed=costs.fixed,
        shadow_prices=dict(solution.shadow_prices),
        method=solution.method,
        reason=solution.reason,
        solver=solution.solver,
        seconds=solution.seconds,
        estimator=profile.estimator,
        activation_ranges=profile.activation_ranges,
        resolved_ranges=profile.resolved_ranges,
        monotone=monotone,
        seed=seed,
        model=profile.model or costs.model,
        warnings=[*profile.warnings, *costs.warnings],
    )


def _point(solution: Solution, resource: str) -> FrontierPoint:
    assert solution.objective is not None
    return FrontierPoint(
        usage=solution.usage[resource],
        predicted_loss=solution.objective,
        bound=solution.bound,
        gap=solution.gap,
        status="optimal" if solution.status == "optimal" else "feasible",
        groups=dict(solution.choice),
    )
