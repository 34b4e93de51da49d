"""The checks every problem passes, whatever door it came through."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np

from mpsearch_solvers.errors import ProblemError
from mpsearch_solvers.goal import LOSS, RESERVED, WORST_LOSS, Goal
from mpsearch_solvers.problem import Floats, Limit, Problem


def check(problem: Problem) -> None:
    """Check names, values and cross-references of a whole problem.

    Args:
        problem: The problem as a door built it.

    Raises:
        ProblemError: At the first thing that is wrong.
    """
    if not problem.groups:
        raise ProblemError("groups", "is empty; give at least one group")
    _check_unique(problem.groups, "groups")
    for resource in problem.resources:
        if resource in RESERVED:
            raise ProblemError(f"costs.{resource}", f"the name {resource!r} means the loss itself")
    _check_values(problem)
    _check_limits(problem)
    _check_goal(problem)
    _check_references(problem)


def read_number(value: object, path: str) -> float:
    """Return a finite float, or say what stands there instead.

    Args:
        value: What was given: an int or a float, not a bool or a string.
        path: Where it stands.

    Returns:
        The value as a float.

    Raises:
        ProblemError: If it is not a number, or not finite.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise ProblemError(path, f"is {value!r} ({type(value).__name__}); give a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ProblemError(path, f"is {value!r}; give a finite number")
    return number


def read_limits(limits: object) -> dict[str, Limit]:
    """Read limits in any of the forms people write them in.

    Args:
        limits: By resource: a number, a Limit, or a mapping with `min` and/or `max`.

    Returns:
        The limits.

    Raises:
        ProblemError: If one is not a number, is empty, or has min above max.
    """
    if not isinstance(limits, Mapping):
        raise ProblemError("limits", f"is {limits!r}; give an object of resource -> limit")
    return {str(resource): _read_limit(value, resource) for resource, value in limits.items()}


def _read_limit(value: object, resource: str) -> Limit:
    path = f"limits.{resource}"
    if isinstance(value, Limit):
        value = {"min": value.min, "max": value.max}
        value = {side: bound for side, bound in value.items() if bound is not None}
    if not isinstance(value, Mapping):
        return Limit(max=read_number(value, path))
    unknown = set(value) - {"min", "max"}
    if unknown or not value:
        raise ProblemError(path, f"is {dict(value)!r}; give min, max or both")
    bounds = {side: read_number(bound, f"{path}.{side}") for side, bound in value.items()}
    limit = Limit(max=bounds.get("max"), min=bounds.get("min"))
    if limit.min is not None and limit.max is not None and limit.min > limit.max:
        raise ProblemError(path, f"min {limit.min:g} is above max {limit.max:g}")
    return limit


def read_goal(goal: object) -> Goal:
    """Read a goal in any of the forms people write it in.

    Args:
        goal: None, a Goal, or `{"minimize": …, "max_loss": …}`.

    Returns:
        The goal; whether its resources exist is checked with the problem.

    Raises:
        ProblemError: If it has unknown fields or values of the wrong type.
    """
    if goal is None:
        return Goal()
    if isinstance(goal, Goal):
        goal = goal.to_dict()
    if not isinstance(goal, Mapping):
        raise ProblemError("goal", f'is {goal!r}; give an object like {{"minimize": "loss"}}')
    unknown = sorted(set(goal) - {"minimize", "max_loss"})
    if unknown:
        raise ProblemError(f"goal.{unknown[0]}", "is unknown; a goal has minimize and max_loss")
    minimize = goal.get("minimize", LOSS)
    if isinstance(minimize, Mapping):
        weights = {str(k): read_number(v, f"goal.minimize.{k}") for k, v in minimize.items()}
        if not weights or not any(weights.values()):
            raise ProblemError("goal.minimize", "has no weight that is not zero")
        minimize = weights
    elif not isinstance(minimize, str):
        raise ProblemError("goal.minimize", f"is {minimize!r}; give a name or an object of weights")
    max_loss = goal.get("max_loss")
    if max_loss is not None:
        max_loss = read_number(max_loss, "goal.max_loss")
    return Goal(minimize=minimize, max_loss=max_loss)


def reject_unknown(path: str, kind: str, name: object, known: Iterable[str]) -> NoReturn:
    """Refuse a name that refers to nothing, with the nearest names.

    Args:
        path: Where the name stands.
        kind: What it should be: "group", "option", "resource".
        name: What was given.
        known: The names that exist.

    Raises:
        ProblemError: Always.
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=3) if len(names) <= 100_000 else []
    known_names = ", ".join(names[:8]) or "none"
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {known_names}"
    more = ", …" if not near and len(names) > 8 else ""
    raise ProblemError(path, f"unknown {kind} {name!r}; {hint}{more}")


def _check_unique(names: Sequence[str], path: str) -> None:
    if len(set(names)) == len(names):
        return
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        if name in seen:
            raise ProblemError(
                f"{path}[{position}].name", f"{name!r} is already {path}[{seen[name]}]"
            )
        seen[name] = position


# Sums, and differences of sums, must stay within float64 (1.8e308).
_LARGEST = 1e307
_TOO_LARGE = "sums of such values leave the range of float64, give them in a larger unit"


def _check_range(problem: Problem, values: Floats, what: str) -> None:
    largest = np.where(problem.allowed, np.abs(values), 0.0)
    with np.errstate(over="ignore"):
        reach = float(largest.max(axis=1).sum())
    if reach < _LARGEST:
        return
    group, option = (int(v) for v in np.unravel_index(int(largest.argmax()), largest.shape))
    raise ProblemError(
        f"groups[{group}].options[{option}].{what}",
        f"is {values[group, option]:g}; {_TOO_LARGE}",
    )


def _check_values(problem: Problem) -> None:
    empty = np.flatnonzero(~problem.allowed.any(axis=1))
    if empty.size:
        raise ProblemError(f"groups[{empty[0]}].options", "is empty; give at least one option")
    _check_finite(problem, problem.loss, "loss")
    _check_range(problem, problem.loss, "loss")
    needed = set(problem.limits) | set(problem.goal.weights)
    for resource, cost in problem.costs.items():
        if resource in needed:
            _check_finite(problem, cost, f"costs.{resource}")
            _check_range(problem, cost, f"costs.{resource}")
        elif np.isinf(cost[problem.allowed]).any():
            _check_finite(problem, np.nan_to_num(cost, nan=0.0, posinf=np.inf), f"costs.{resource}")
    for resource, peak in problem.peaks.items():
        bad = ~np.isfinite(peak.cost) & problem.allowed
        if bad.any() or not np.isfinite(peak.base).all():
            step = int(np.argwhere(bad)[0][0]) if bad.any() else 0
            raise ProblemError(f"rows.{resource}[{step}]", "holds a value that is not finite")


def _check_finite(problem: Problem, values: Floats, what: str) -> None:
    bad = problem.allowed & ~np.isfinite(values)
    if not bad.any():
        return
    group, option = (int(v) for v in np.argwhere(bad)[0])
    path = f"groups[{group}].options[{option}].{what}"
    value = values[group, option]
    if math.isnan(value) and what != "loss":
        resource = what.removeprefix("costs.")
        raise ProblemError(
            path,
            f"is missing or NaN; every option prices every resource that is limited or minimised, "
            f"and {resource!r} is (group {problem.groups[group]!r})",
        )
    raise ProblemError(path, f"is {value}; give a finite number")


def _check_limits(problem: Problem) -> None:
    for resource in problem.limits:
        if resource not in problem.costs and resource not in problem.peaks:
            reject_unknown(f"limits.{resource}", "resource", resource, problem.resources)
        if resource in problem.peaks and problem.limits[resource].min is not None:
            raise ProblemError(
                f"limits.{resource}.min", "a peak resource has no least usage; give a max"
            )


def _check_goal(problem: Problem) -> None:
    goal = problem.goal
    for name in goal.weights:
        if name in problem.peaks:
            if not isinstance(goal.minimize, str):
                raise ProblemError(
                    f"goal.minimize.{name}", "a peak cannot be part of a weighted sum; limit it"
                )
        elif name not in problem.costs and name != LOSS:
            if isinstance(goal.minimize, str):
                known = (LOSS, WORST_LOSS, *problem.resources)
                reject_unknown("goal.minimize", "goal", name, known)
            reject_unknown(
                f"goal.minimize.{name}", "term of a weighted sum", name, (LOSS, *problem.costs)
            )
    if problem.interactions is not None and (
        goal.max_loss is not None or goal.is_worst_loss or LOSS not in goal.weights
    ):
        raise ProblemError("goal", "interactions need a goal that minimises the loss, no max_loss")


def _check_references(problem: Problem) -> None:
    for group, option in problem.fixed.items():
        _check_option(problem, f"fixed.{group}", group, option)
    for position, (group, option) in enumerate(problem.forbidden):
        _check_option(problem, f"forbidden[{position}]", group, option)
    for position, tie in enumerate(problem.ties):
        for member in tie:
            if member not in problem.group_index:
                reject_unknown(f"ties[{position}]", "group", member, problem.groups)
    pairs = problem.interactions
    if pairs is None:
        return
    same = np.flatnonzero(pairs.groups[:, 0] == pairs.groups[:, 1])
    if same.size:
        raise ProblemError(f"interactions[{same[0]}].groups", "names the same group twice")
    bad = np.flatnonzero(~np.isfinite(pairs.loss))
    if bad.size:
        raise ProblemError(f"interactions[{bad[0]}].loss", f"is {pairs.loss[bad[0]]}")
    if not np.abs(pairs.loss / _LARGEST).sum() < 1.0:
        place = int(np.abs(pairs.loss).argmax())
        raise ProblemError(f"interactions[{place}].loss", f"is {pairs.loss[place]:g}; {_TOO_LARGE}")


def _check_option(problem: Problem, path: str, group: str, option: str) -> None:
    position = problem.group_index.get(group)
    if position is None:
        reject_unknown(path, "group", group, problem.groups)
    menu = [
        name
        for name, offered in zip(problem.options[position], problem.allowed[position], strict=False)
        if offered
    ]
    if option not in menu:
        reject_unknown(path, f"option of group {group!r}", option, menu)
