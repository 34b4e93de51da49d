"""Frontiers where neighbours whose options differ cost extra: one proven solve for every point."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from mpsearch.conversion_problem import PairedProblem
from mpsearch.schemas import Costs
from mpsearch_solvers import Solution

__all__ = ["POINTS", "paired_points", "with_exact_use"]

POINTS = 12
"""Points of a curve when no number is asked for."""
POINT_SECONDS = 10.0
CURVE_SECONDS = 90.0


def paired_points(
    paired: PairedProblem, resource: str, points: int | None = None
) -> list[Solution]:
    """Solve at evenly spaced limits, from the least use to that of the least loss.

    Args:
        paired: The problem; limits of other resources hold at every point.
        resource: The resource that the curve runs over; it has a limit that never binds.
        points: How many limits; `POINTS` when left out.

    Returns:
        Solutions from the cheapest to the dearest, none of which another beats in both; the one
        without a choice if nothing is feasible. Where time runs out they are fewer, evenly spread.
    """
    ends = time.monotonic() + CURVE_SECONDS
    dearest = paired.solve(seconds=POINT_SECONDS)
    least = paired.least(resource) if dearest.indices is not None else None
    if least is None:
        return [dearest]
    found = [dearest]
    limits = np.linspace(least, dearest.usage[resource], points or POINTS)[:-1].tolist()
    for number in _spread(len(limits)):
        limit = limits[number]
        if time.monotonic() >= ends:
            break
        found.append(paired.within({resource: limit}).solve(seconds=POINT_SECONDS))
    return _undominated(found, resource)


def _spread(count: int) -> list[int]:
    """Order places so that those before any other lie evenly: by their bits, last ones first."""
    width = max(count - 1, 1).bit_length()
    return sorted(range(count), key=lambda place: f"{place:0{width}b}"[::-1])


def with_exact_use(found: list[Solution], costs: Costs, resource: str) -> list[Solution]:
    """Count conversions in the use of solutions of problems that bound them by sums.

    Args:
        found: Solutions; what they prove is of the other problem, and is left out.
        costs: Prices with conversions.
        resource: The resource that the curve runs over.

    Returns:
        Those that none beats in both use and loss, status `feasible`.
    """
    exact = [
        dataclasses.replace(
            each,
            status="feasible",
            bound=None,
            gap=None,
            usage={resource: costs.usage(resource, each.indices)},
        )
        for each in found
        if each.indices is not None
    ]
    return _undominated(exact, resource) or found


def _undominated(found: list[Solution], resource: str) -> list[Solution]:
    answered = [each for each in found if each.objective is not None]
    kept: list[Solution] = []
    for each in sorted(answered, key=lambda s: (s.usage[resource], s.objective)):
        assert each.objective is not None
        if not kept or each.objective < (kept[-1].objective or 0.0):
            kept.append(each)
    return kept
