"""Posing the solver's problem: scores, prices, limits and what each group is offered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError
from mpsearch.schemas import Costs, Profile
from mpsearch_solvers import Interactions, PeakRows, Problem

__all__ = ["Monotone", "problem_of"]

Monotone = Literal["keep", "clamp"]


def problem_of(
    profile: Profile,
    costs: Costs,
    limits: Mapping[str, float],
    monotone: Monotone,
    offered: NDArray[np.bool_],
) -> Problem:
    """Put scores and prices into the form the solvers take.

    Args:
        profile: Predicted losses, with interactions where there are some.
        costs: Prices.
        limits: Limited resource -> its limit, in base units.
        monotone: Whether losses are clamped first.
        offered: Bool mask of what each group may take, groups x options.

    Returns:
        The problem.
    """
    pairs = profile.interactions
    rows = {}
    for resource in set(limits) & set(costs.peaks):
        cost, base = costs.peak_rows(resource)
        names = tuple(step.name for step in costs.peaks[resource])
        rows[resource] = PeakRows(names, cost, base)
    return Problem.from_arrays(
        profile.loss if monotone == "keep" else _clamped(profile, costs),
        costs={resource: costs.values[resource] for resource in limits if resource not in rows},
        limits=dict(limits),
        names=profile.groups,
        options=profile.options,
        allowed=offered,
        rows=rows,
        interactions=None if pairs is None else Interactions.from_matrix(pairs, offered),
    )


def _clamped(profile: Profile, costs: Costs) -> NDArray[np.float64]:
    """Make losses non-increasing in weight memory (or the first resource that adds up)."""
    if not costs.values:
        raise InputError("clamping orders options by cost, and no resource adds up over groups")
    price = costs.values.get("weight_memory", next(iter(costs.values.values())))
    loss = profile.loss.copy()
    for row in range(len(profile.groups)):
        columns = np.flatnonzero(profile.offered[row])
        order = columns[np.argsort(price[row, columns], kind="stable")]
        # Going down from the dearest, no cheaper option may look better than a dearer one.
        loss[row, order] = np.maximum.accumulate(loss[row, order][::-1])[::-1]
    return loss
