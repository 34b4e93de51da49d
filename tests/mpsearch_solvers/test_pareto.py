from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from instances import random_problem

from mpsearch_solvers import Frontier, MethodError, Problem, ProblemError, frontier, solve


def pareto_front(problem: Problem, resource: str) -> list[tuple[float, float]]:
    """All Pareto-optimal (usage, loss), by enumeration."""
    points = set()
    for choice in itertools.product(*(np.flatnonzero(row).tolist() for row in problem.allowed)):
        cost = math.fsum(problem.costs[resource][g, c] for g, c in enumerate(choice))
        loss = math.fsum(problem.loss[g, c] for g, c in enumerate(choice))
        points.add((cost, loss))
    front: list[tuple[float, float]] = []
    for cost, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return front


def lower_hull(front: list[tuple[float, float]]) -> list[tuple[float, float]]:
    hull: list[tuple[float, float]] = []
    for point in front:
        while len(hull) > 1:
            (x1, y1), (x2, y2) = hull[-2:]
            if (y2 - y1) * (point[0] - x1) < (point[1] - y1) * (x2 - x1):
                break
            hull.pop()
        hull.append(point)
    return hull


def unlimited(rng, groups, options) -> Problem:
    plain = random_problem(rng, groups, options, 1, ragged=True)
    return Problem.from_arrays(plain.loss, plain.costs, {}, allowed=plain.allowed)


def test_the_sweep_gives_all_supported_points_and_no_others():
    rng = np.random.default_rng(0)
    for _ in range(30):
        problem = unlimited(rng, 5, 4)
        curve = frontier(problem, "r0")
        found = [(point.usage["r0"], point.objective) for point in curve]
        expected = lower_hull(pareto_front(problem, "r0"))
        assert np.allclose(found, expected, rtol=1e-12)
        assert np.allclose(curve.usage, [cost for cost, _ in expected])
        assert np.allclose(curve.objective, [loss for _, loss in expected])
        assert all(point.status == "optimal" and point.gap == 0.0 for point in curve)


def test_unsupported_points_complete_the_pareto_front():
    rng = np.random.default_rng(1)
    for _ in range(5):
        problem = unlimited(rng, 4, 3)
        found = [
            (point.usage["r0"], point.objective)
            for point in frontier(problem, "r0", unsupported=True)
        ]
        assert np.allclose(found, pareto_front(problem, "r0"), rtol=1e-12)


def test_every_supported_point_is_what_a_solve_under_its_usage_gives():
    problem = unlimited(np.random.default_rng(2), 30, 5)
    curve = frontier(problem, "r0")
    for place in range(0, len(curve), 7):
        point = curve[place]
        again = solve(problem.with_limits(r0=point.usage["r0"]), gap=0)
        assert again.objective == pytest.approx(point.objective, rel=1e-12)


def test_points_thin_the_curve_and_keep_its_ends():
    problem = unlimited(np.random.default_rng(3), 40, 5)
    whole, thin = frontier(problem, "r0"), frontier(problem, "r0", points=6)
    assert isinstance(thin, Frontier)
    assert len(thin) == 6
    assert (thin[0].usage, thin[-1].usage) == (whole[0].usage, whole[-1].usage)
    assert [point.objective for point in thin[::2]] == [
        thin[0].objective,
        thin[2].objective,
        thin[4].objective,
    ]
    with pytest.raises(IndexError):
        thin[6]


def test_other_limits_hold_at_every_point():
    problem = random_problem(np.random.default_rng(4), 12, 4, 2, tightness=0.5)
    curve = frontier(problem, "r0", points=8)
    assert 2 <= len(curve) <= 8
    usages = [point.usage["r0"] for point in curve]
    losses = [point.objective for point in curve]
    assert usages == sorted(usages)
    assert losses == sorted(losses, reverse=True)
    for point in curve:
        assert point.usage["r1"] <= problem.limits["r1"].max
        best = solve(problem.with_limits(r0=point.usage["r0"]), gap=0)
        assert point.objective <= best.objective * (1 + 1e-6)


def test_the_other_limits_may_be_infeasible():
    problem = Problem.from_arrays([[1.0, 2.0]], {"s": [[1.0, 2.0]], "t": [[1.0, 1.0]]}, {"t": 0.5})
    (point,) = frontier(problem, "s")
    assert point.status == "infeasible"


def test_a_bad_resource_or_number_of_points_is_refused():
    problem = unlimited(np.random.default_rng(5), 3, 3)
    with pytest.raises(ProblemError, match="unknown resource 'r9'"):
        frontier(problem, "r9")
    with pytest.raises(MethodError, match="at least 2"):
        frontier(problem, "r0", points=1)
