"""Lower bounds on a convexified quadratic allocation, valid at every step of the computation.

For a convex function the tangent plane at any point lies below it. Minimising the plane over one
option per group, with budgets priced by multipliers `>= 0`, separates by group and bounds every
allocation, wherever the point and whatever the multipliers: accuracy only makes it tighter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.method import Run
from mpsearch_solvers.problem import Bools, Floats
from mpsearch_solvers.quadratic_convex import (
    cheapest_diagonal,
    contrasts,
    curvature,
    make_convex,
    spread_weights,
)

_CHECK = 8
_GRID = np.linspace(0.0, 1.0, 12)
_ZOOMS = 3


@dataclass(frozen=True, eq=False)
class Part:
    """What is left to choose: `linear . x + x matrix x / 2` under `cost . x <= room`.

    Attributes:
        linear: Shape (groups, options); 0 where not allowed.
        allowed: Which columns may be chosen.
        cost: Row costs, shape (rows, groups, options).
        room: Row limits, shape (rows,).
    """

    linear: Floats
    allowed: Bools
    cost: Floats
    room: Floats


@dataclass(frozen=True, eq=False)
class Bound:
    """A proven bound and what it says about single options.

    Attributes:
        value: No allocation of the part is below this.
        reduced: An allocation with this option is not below `value + reduced`, (groups, options).
        point: The relaxed solution reached, shape (groups, options).
        multipliers: Price of every row, shape (rows,).
    """

    value: float
    reduced: Floats
    point: Floats
    multipliers: Floats


class Convex:
    """The interactions of some groups with a diagonal that makes them convex."""

    def __init__(self, matrix: Floats, diagonal: Floats, step: float) -> None:
        """Keep a matrix, the diagonal added to it, and a bound on its curvature."""
        self.matrix = matrix
        self.diagonal = diagonal
        self.step = step

    @classmethod
    def of(cls, matrix: Floats, diagonal: Floats, allowed: Bools) -> Convex:
        """Bring a diagonal to the edge of convexity and measure the curvature."""
        basis = contrasts(allowed)
        if basis.shape[1]:
            diagonal = make_convex(matrix, diagonal, basis)
        return cls(matrix, diagonal, curvature(matrix, diagonal, basis))

    def tail(self, places: int) -> Convex:
        """Return the same without the first places: a principal part of a convex matrix."""
        return Convex(self.matrix[places:, places:], self.diagonal[places:], self.step)

    def bound(
        self, part: Part, cutoff: float, point: Floats, multipliers: Floats, steps: int
    ) -> Bound:
        """Bound a part from below by accelerated projected gradients.

        Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm" (2009), with
        restarts; every few steps the tangent plane is minimised, which gives the bound.

        Args:
            part: What is left to choose.
            cutoff: Stop as soon as the bound reaches this.
            point: Where to start, shape (groups, options).
            multipliers: Row prices to start from.
            steps: Most gradient steps.

        Returns:
            The best bound seen.
        """
        shape = part.linear.shape
        lean = part.linear - 0.5 * self.diagonal.reshape(shape)
        x = project(point, part.allowed)
        ahead, pace = x, 1.0
        best: Bound | None = None
        for step in range(steps + 1):
            if step % _CHECK == 0:
                found, ceiling = self._tangent(part, lean, x, multipliers)
                multipliers = found.multipliers
                if best is None or found.value > best.value:
                    best = found
                if best.value >= cutoff or ceiling - best.value < 0.05 * (cutoff - best.value):
                    break
            slope = lean + self._product(ahead) + np.tensordot(multipliers, part.cost, axes=1)
            after = project(ahead - slope / self.step, part.allowed)
            if np.vdot(ahead - after, after - x) > 0.0:
                pace = 1.0
            faster = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * pace * pace))
            ahead = after + (pace - 1.0) / faster * (after - x)
            x, pace = after, faster
        assert best is not None
        return best

    def _product(self, x: Floats) -> Floats:
        flat = x.ravel()
        product: Floats = (self.matrix @ flat + self.diagonal * flat).reshape(x.shape)
        return product

    def _tangent(
        self, part: Part, lean: Floats, x: Floats, multipliers: Floats
    ) -> tuple[Bound, float]:
        """Return the bound of the tangent plane at x, and the Lagrangian's value there."""
        curved = self._product(x)
        slope = lean + curved
        constant = -0.5 * float(np.vdot(curved, x))
        plane = np.where(part.allowed, slope, np.inf)
        multipliers = price_rows(plane, part.cost, part.room, multipliers)
        priced = plane + np.tensordot(multipliers, part.cost, axes=1)
        least = priced.min(axis=1)
        value = constant + float(least.sum()) - float(multipliers @ part.room)
        spent = (part.cost * x).sum(axis=(1, 2)) - part.room
        ceiling = -constant + float(np.vdot(lean, x)) + float(multipliers @ spent)
        return Bound(value, priced - least[:, None], x, multipliers), ceiling


def project(point: Floats, allowed: Bools) -> Floats:
    """Return the nearest point whose groups each sum to 1 over their allowed columns.

    Held, Wolfe and Crowder, "Validation of subgradient optimization" (1974), all groups at once.
    """
    masked = np.where(allowed, point, -np.inf)
    ordered = -np.sort(-masked, axis=1)
    with np.errstate(invalid="ignore"):
        excess = (np.cumsum(ordered, axis=1) - 1.0) / np.arange(1, point.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    nearest: Floats = np.maximum(masked - excess[np.arange(len(point)), last][:, None], 0.0)
    return nearest


def price_rows(plane: Floats, cost: Floats, room: Floats, prices: Floats) -> Floats:
    """Return row prices that nearly maximise the Lagrangian bound of a linear objective.

    Args:
        plane: Linear objective, `inf` where not allowed, shape (groups, options).
        cost: Row costs, shape (rows, groups, options).
        room: Row limits, shape (rows,).
        prices: Where to start, shape (rows,).

    Returns:
        Prices >= 0, shape (rows,).
    """
    prices = prices.copy()
    finite = plane[np.isfinite(plane)]
    unit = float(np.ptp(finite)) if finite.size else 1.0
    for _ in range(1 if len(room) == 1 else 2):
        for row in range(len(room)):
            others = prices.copy()
            others[row] = 0.0
            rest = plane + np.tensordot(others, cost, axes=1)
            prices[row] = _price_row(rest, cost[row], float(room[row]), prices[row], unit)
    return prices


def _price_row(plane: Floats, cost: Floats, room: float, price: float, unit: float) -> float:
    """Return the best price of one row: the dual is concave, so a grid closes in on it."""

    def duals(trial: Floats) -> Floats:
        value: Floats = (plane + trial[:, None, None] * cost).min(axis=2).sum(axis=1)
        return value - trial * room

    low, high = 0.0, 2.0 * price or 0.1 * unit or 1.0
    for _ in range(40):
        ends = duals(np.array([0.95 * high, high]))
        if ends[1] <= ends[0]:
            break
        low, high = high, 4.0 * high
    best = high
    for _ in range(_ZOOMS):
        trial = low + (high - low) * _GRID
        at = int(duals(trial).argmax())
        best = float(trial[at])
        low, high = float(trial[max(0, at - 1)]), float(trial[min(len(trial) - 1, at + 1)])
    return best


def improve(
    convex: Convex, part: Part, bound: Bound, cutoff: float, factor: Floats, rounds: int, run: Run
) -> tuple[Convex, Bound, Floats]:
    """Move the diagonal towards the best bound, by Frank-Wolfe steps over convex diagonals.

    Args:
        convex: The present diagonal.
        part: What is bounded.
        bound: The bound with the present diagonal.
        cutoff: Stop when the bound reaches this.
        factor: Start of the semidefinite descent.
        rounds: Most steps.
        run: Ends the descent when its time is over.

    Returns:
        The better diagonal, its bound, and the factor to go on from.
    """
    for _ in range(rounds):
        if bound.value >= cutoff or run.is_over:
            break
        weights = spread_weights(bound.point)
        target, factor = cheapest_diagonal(convex.matrix, weights, part.allowed, factor)
        target = Convex.of(convex.matrix, target, part.allowed).diagonal
        before = bound.value
        for share in (0.5, 0.2, 0.08):
            if run.remaining == 0.0:
                break
            mixed = (1.0 - share) * convex.diagonal + share * target
            trial = Convex.of(convex.matrix, mixed, part.allowed)
            found = trial.bound(part, cutoff, bound.point, bound.multipliers, 150)
            if found.value > bound.value:
                convex, bound = trial, found
                break
        if bound.value - before < 0.02 * (cutoff - before):
            break
    return convex, bound, factor
