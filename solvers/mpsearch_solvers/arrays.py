"""Building a problem from arrays, for callers that already hold profiles and cost tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mpsearch_solvers.errors import ProblemError
from mpsearch_solvers.goal import Goal
from mpsearch_solvers.problem import Bools, Floats, Interactions, PeakRows, Problem
from mpsearch_solvers.validation import check, read_goal, read_limits


def build(
    *,
    loss: ArrayLike,
    costs: Mapping[str, ArrayLike],
    limits: Mapping[str, Any],
    names: Sequence[str] | None,
    options: Sequence[str] | Sequence[Sequence[str]] | None,
    allowed: ArrayLike | None,
    rows: Mapping[str, ArrayLike | PeakRows],
    fixed: Mapping[str, str],
    forbidden: Sequence[tuple[str, str]],
    ties: Sequence[Sequence[str]],
    goal: Goal | Mapping[str, Any] | None,
    interactions: Interactions | None,
) -> Problem:
    """Build and check a problem; the arguments are those of `Problem.from_arrays`.

    Returns:
        The checked problem; arrays are copies.

    Raises:
        ProblemError: If shapes, values or names do not fit.
    """
    losses = _floats(loss, "loss")
    if losses.ndim != 2:
        raise ProblemError("loss", f"has shape {losses.shape}; give (groups, options)")
    groups, width = losses.shape
    menu = _mask(allowed, losses.shape)
    priced = {str(k): _table(v, f"costs.{k}", losses.shape, menu) for k, v in costs.items()}
    losses[~menu] = np.inf
    problem = Problem(
        groups=_names(names, groups),
        options=_options(options, groups, width),
        loss=losses,
        allowed=menu,
        costs=priced,
        peaks={str(k): _peak(v, str(k), losses.shape, menu) for k, v in rows.items()},
        limits=read_limits(limits),
        fixed={str(k): str(v) for k, v in fixed.items()},
        forbidden=tuple((str(group), str(option)) for group, option in forbidden),
        ties=tuple(tuple(str(member) for member in tie) for tie in ties),
        goal=read_goal(goal),
        interactions=interactions,
    )
    check(problem)
    return problem


def _floats(values: ArrayLike, path: str) -> Floats:
    try:
        given = np.array(values)
    except (TypeError, ValueError) as error:
        raise ProblemError(path, f"is not an array of numbers ({error})") from error
    if given.dtype.kind not in "iuf":
        raise ProblemError(path, f"is an array of {given.dtype}; give numbers")
    return given.astype(np.float64)


def _table(values: ArrayLike, path: str, shape: tuple[int, ...], allowed: Bools) -> Floats:
    table = _floats(values, path)
    if table.shape != shape:
        raise ProblemError(path, f"has shape {table.shape}; the losses have {shape}")
    table[~allowed] = 0.0
    return table


def _mask(allowed: ArrayLike | None, shape: tuple[int, ...]) -> Bools:
    if allowed is None:
        return np.ones(shape, dtype=np.bool_)
    mask = np.array(allowed)
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise ProblemError(
            "allowed", f"is {mask.dtype} of shape {mask.shape}; give booleans of shape {shape}"
        )
    return mask


def _peak(
    values: ArrayLike | PeakRows, resource: str, shape: tuple[int, ...], allowed: Bools
) -> PeakRows:
    path = f"rows.{resource}"
    given = values if isinstance(values, PeakRows) else None
    cost = _floats(given.cost if given else values, path)  # type: ignore[arg-type]
    if cost.ndim != 3 or cost.shape[1:] != shape or not cost.shape[0]:
        raise ProblemError(path, f"has shape {cost.shape}; give (steps, groups, options)")
    cost[:, ~allowed] = 0.0
    steps = given.steps if given else tuple(str(step) for step in range(cost.shape[0]))
    base = _floats(given.base if given else np.zeros(cost.shape[0]), f"{path}.base")
    if base.shape != (cost.shape[0],) or len(steps) != cost.shape[0]:
        raise ProblemError(
            path, f"has {cost.shape[0]} steps, {len(steps)} names, {base.size} bases"
        )
    return PeakRows(steps=tuple(steps), cost=cost, base=base)


def _names(names: Sequence[str] | None, groups: int) -> tuple[str, ...]:
    if names is None:
        return tuple(str(group) for group in range(groups))
    if len(names) != groups:
        raise ProblemError("names", f"holds {len(names)} names for {groups} groups")
    return tuple(str(name) for name in names)


def _options(
    options: Sequence[str] | Sequence[Sequence[str]] | None, groups: int, width: int
) -> tuple[tuple[str, ...], ...]:
    if options is None:
        return (tuple(str(column) for column in range(width)),) * groups
    if all(isinstance(name, str) for name in options):
        shared = tuple(str(name) for name in options)
        if len(shared) != width or len(set(shared)) != width:
            raise ProblemError("options", f"needs {width} different names, has {list(shared)}")
        return (shared,) * groups
    menus = tuple(tuple(str(name) for name in menu) for menu in options)
    if len(menus) != groups:
        raise ProblemError("options", f"holds {len(menus)} menus for {groups} groups")
    for group, menu in enumerate(menus):
        if len(menu) != width or len(set(menu)) != width:
            raise ProblemError(f"options[{group}]", f"needs {width} different names, has {menu}")
    return menus
