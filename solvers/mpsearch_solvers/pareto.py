"""The frontier between the goal and one resource, every point with its certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import overload

import numpy as np

from mpsearch_solvers.errors import MethodError, ProblemError
from mpsearch_solvers.evaluation import objective_of, total_loss, usage_of, usages
from mpsearch_solvers.goal import Goal
from mpsearch_solvers.hull import HullMoves, hull_moves
from mpsearch_solvers.method import Method, Progress
from mpsearch_solvers.model import Model, compile_problem, sum_members
from mpsearch_solvers.problem import Floats, Limit, Problem
from mpsearch_solvers.registry import AUTO
from mpsearch_solvers.solution import OPTIMAL, Solution
from mpsearch_solvers.solving import choice_names, solve
from mpsearch_solvers.validation import reject_unknown

_DEFAULT_POINTS = 20


class Frontier(Sequence[Solution]):
    """Pareto-optimal allocations from the least use of a resource to the best goal value.

    Points are built when asked for: the frontier of 50,000 groups has 200,000 of them.

    Attributes:
        resource: The resource on the axis.
        usage: Its use at every point, ascending, shape (points,).
        objective: The goal's value at every point, descending, shape (points,).
    """

    def __init__(
        self, resource: str, usage: Floats, objective: Floats, build: Callable[[int], Solution]
    ) -> None:
        """Keep the curve and what builds its points.

        Args:
            resource: The resource on the axis.
            usage: Ascending, shape (points,).
            objective: Descending, shape (points,).
            build: Returns the solution of a point by position.
        """
        self.resource = resource
        self.usage = usage
        self.objective = objective
        self._build = build

    def __len__(self) -> int:
        return len(self.usage)

    @overload
    def __getitem__(self, position: int) -> Solution: ...

    @overload
    def __getitem__(self, position: slice) -> list[Solution]: ...

    def __getitem__(self, position: int | slice) -> Solution | list[Solution]:
        if isinstance(position, slice):
            return [self._build(place) for place in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(f"point {position} of a frontier of {len(self)}")
        return self._build(position % len(self))

    def __iter__(self) -> Iterator[Solution]:
        return (self._build(place) for place in range(len(self)))


def frontier(
    problem: Problem,
    resource: str,
    points: int | None = None,
    *,
    unsupported: bool = False,
    method: str | Method = AUTO,
    gap: float = 1e-6,
    time_limit: float | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Frontier:
    """Trace the best goal value against the use of one resource.

    Without other limits, all supported points (those on the convex hull) come from one sweep.
    With other limits, or a goal that is not a sum, the points are solves under evenly spaced
    limits. A limit of the problem on the swept resource itself is set aside.

    Args:
        problem: What to solve; other limits hold at every point.
        resource: The resource on the axis.
        points: Thin the curve to about so many points; default all supported points, or 20
            solves where there is no sweep.
        unsupported: Also find the Pareto-optimal points between supported ones, one solve each.
        method: Method of the solves.
        gap: Gap asked of each solve.
        time_limit: Seconds for the whole curve; it ends early with what is there.
        seed: Seed of the solves.
        progress: Called with the progress of the solves.

    Returns:
        The frontier; usage ascends and the objective descends.

    Raises:
        ProblemError: If the resource is unknown or not priced by every option.
        MethodError: If points is less than 2.
    """
    if points is not None and points < 2:
        raise MethodError(f"points is {points}; a frontier has at least 2")
    free = _set_aside(problem, resource)
    terms = _Terms(method, gap, time_limit, seed, progress)
    model = compile_problem(free)
    if not _has_sweep(model, resource):
        return _collect(resource, _spaced(free, resource, points or _DEFAULT_POINTS, terms))
    curve = _sweep(model, resource, terms)
    if unsupported:
        return _collect(resource, _between(free, resource, curve, terms), points)
    return _thin(curve, points)


class _Terms:
    """How the single solves of a frontier run, and how much of the time is left for them."""

    def __init__(
        self,
        method: str | Method,
        gap: float,
        time_limit: float | None,
        seed: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.method = method
        self.gap = gap
        self.seed = seed
        self.progress = progress
        self.began = time.perf_counter()
        self.end = None if time_limit is None else self.began + time_limit

    @property
    def is_over(self) -> bool:
        return self.end is not None and time.perf_counter() >= self.end

    def solve(
        self, problem: Problem, gap: float | None = None, start: Solution | None = None
    ) -> Solution:
        left = None if self.end is None else max(1e-3, self.end - time.perf_counter())
        return solve(
            problem,
            self.method,
            self.gap if gap is None else gap,
            left,
            self.seed,
            progress=self.progress,
            start=start,
        )


def _set_aside(problem: Problem, resource: str) -> Problem:
    if resource not in problem.resources:
        reject_unknown("frontier", "resource", resource, problem.resources)
    if resource in problem.costs and np.isnan(problem.costs[resource][problem.allowed]).any():
        raise ProblemError("frontier", f"some options do not price {resource!r}")
    limits = {name: limit for name, limit in problem.limits.items() if name != resource}
    return replace(problem, limits=limits)


def _has_sweep(model: Model, resource: str) -> bool:
    """Return whether groups separate under a price on the resource."""
    goal = model.problem.goal
    is_sum = model.peak is None and model.interactions is None and not goal.is_worst_loss
    return is_sum and not model.rows and resource in model.problem.costs


def _sweep(model: Model, resource: str, terms: _Terms) -> Frontier:
    """Return all supported points: prefixes of the hull moves, steepest first."""
    cost = sum_members(model.problem.costs[resource], model.member, model.column, model.allowed)
    moves = hull_moves(model.objective, cost, model.allowed)
    groups = np.arange(len(moves.start))
    usage = np.concatenate([[cost[groups, moves.start].sum()], moves.cost]).cumsum()
    saved = np.concatenate([[0.0], moves.saved]).cumsum()
    objective = model.objective[groups, moves.start].sum() - saved
    walker = _Walker(model, resource, moves, terms.began)
    return Frontier(resource, usage, objective, walker.point)


class _Walker:
    """Builds supported points, going on from the last one where it can."""

    def __init__(self, model: Model, resource: str, moves: HullMoves, began: float) -> None:
        self._model = model
        self._resource = resource
        self._moves = moves
        self._seconds = time.perf_counter() - began
        self._at = 0
        self._indices = moves.start.copy()

    def point(self, position: int) -> Solution:
        """Return the supported point after so many moves."""
        if position < self._at:
            self._at, self._indices = 0, self._moves.start.copy()
        # Moves of one group come in order, so the last write wins, as it should.
        step = slice(self._at, position)
        self._indices[self._moves.group[step]] = self._moves.column[step]
        self._at = position
        problem = self._model.problem
        indices = self._model.expand(self._indices)
        objective = objective_of(problem, indices)
        return Solution(
            status=OPTIMAL,
            objective=objective,
            bound=objective,
            gap=0.0,
            choice=choice_names(problem, indices),
            indices=indices,
            usage=usages(problem, indices),
            loss=total_loss(problem, indices),
            method="sweep",
            reason="supported points lie on the convex hull",
            seconds=self._seconds,
            shadow_prices={self._resource: self._slope(position)},
        )

    def _slope(self, position: int) -> float:
        """Return the loss that the next move would save per unit: the price that supports it."""
        if position >= len(self._moves.cost):
            return 0.0
        return float(self._moves.saved[position] / self._moves.cost[position])


def _thin(curve: Frontier, points: int | None) -> Frontier:
    """Keep about so many points, evenly spaced along the resource, both ends included."""
    if points is None or points >= len(curve):
        return curve
    wanted = np.linspace(curve.usage[0], curve.usage[-1], points)
    kept = np.unique(np.searchsorted(curve.usage, wanted, side="left").clip(0, len(curve) - 1))
    places = kept.tolist()
    return Frontier(
        curve.resource, curve.usage[kept], curve.objective[kept], lambda at: curve[places[at]]
    )


def _spaced(problem: Problem, resource: str, points: int, terms: _Terms) -> list[Solution]:
    """Solve under evenly spaced limits, from the least usage that the other limits allow."""
    least = terms.solve(replace(problem, goal=Goal(resource), interactions=None))
    if least.indices is None:
        return [least]
    best = terms.solve(problem)
    if best.indices is None:
        return [best]
    low = usage_of(problem, resource, least.indices)
    high = usage_of(problem, resource, best.indices)
    found = [best]
    for limit in np.linspace(high, low, points)[1:].tolist():
        if terms.is_over:
            break
        found.append(terms.solve(_limited(problem, resource, limit), start=found[-1]))
    return [solution for solution in found if solution.indices is not None]


def _between(problem: Problem, resource: str, curve: Frontier, terms: _Terms) -> list[Solution]:
    """Return supported points and all Pareto-optimal ones between them, by epsilon-constraint."""
    found = list(curve)
    for left, right in pairwise(list(found)):
        assert left.objective is not None
        last = right
        while not terms.is_over:
            limit = math.nextafter(last.usage[resource], -math.inf)
            if limit <= left.usage[resource]:
                break
            last = terms.solve(_limited(problem, resource, limit), gap=0.0, start=last)
            if last.objective is None or last.objective >= left.objective:
                break
            found.append(last)
    return found


def _limited(problem: Problem, resource: str, limit: float) -> Problem:
    return replace(problem, limits={**problem.limits, resource: Limit(max=limit)})


def _collect(resource: str, found: list[Solution], points: int | None = None) -> Frontier:
    """Sort solutions and drop those that another beats; failures are kept only when alone."""
    solved = [one for one in found if one.objective is not None]
    if not solved:
        return Frontier(resource, np.full(1, np.nan), np.full(1, np.nan), lambda _: found[0])
    solved.sort(key=lambda one: (one.usage[resource], one.objective))
    kept: list[Solution] = []
    for one in solved:
        if not kept or one.objective < kept[-1].objective:  # type: ignore[operator]
            kept.append(one)
    usage = np.array([one.usage[resource] for one in kept])
    objective = np.array([one.objective for one in kept], dtype=np.float64)
    return _thin(Frontier(resource, usage, objective, kept.__getitem__), points)
