from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mpsearch_solvers import Interactions, Problem, solve
from mpsearch_solvers.ilp import Ilp, available_backends


def least_loss(problem: Problem) -> float | None:
    """Enumerate with exact sums, from the given numbers alone."""
    (limit,), (cost,) = problem.limits.values(), problem.costs.values()
    groups = np.arange(len(problem.groups))
    found = [
        math.fsum(problem.loss[groups, choice])
        for choice in itertools.product(range(problem.loss.shape[1]), repeat=len(groups))
        if math.fsum(cost[groups, choice]) <= limit.max
    ]
    return min(found, default=None)


def wide_problem(rng: np.random.Generator) -> Problem:
    """Losses and costs over 24 orders of magnitude, a limit that some allocation just keeps."""
    loss = 10.0 ** rng.uniform(-12, 12, (5, 4))
    cost = 10.0 ** rng.uniform(-12, 12, (5, 4))
    limit = math.fsum(cost[np.arange(5), rng.integers(4, size=5)])
    return Problem.from_arrays(loss, {"size": cost}, {"size": limit})


@pytest.mark.parametrize("method", ["decomposition", "dp"])
def test_losses_of_many_magnitudes_are_solved_exactly(method):
    rng = np.random.default_rng(4)
    for _ in range(60):
        problem = wide_problem(rng)
        found = solve(problem, method, gap=0)
        assert found.status == "optimal"
        assert found.objective == least_loss(problem)


@pytest.mark.parametrize("backend", available_backends())
def test_a_mip_solver_proves_its_answer_in_the_unit_of_what_is_left(backend):
    rng = np.random.default_rng(5)
    for _ in range(25):
        problem = wide_problem(rng)
        best = least_loss(problem)
        found = solve(problem, Ilp(backend))
        assert found.status == "optimal"
        assert found.bound <= best
        assert found.objective == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("method", ["decomposition", "ilp", "dp", "quadratic"])
def test_a_hopeless_option_hides_no_difference_between_the_others(method):
    loss = [[1e15, 0.1, 1e8], [3.3, 0.1, 5.0], [1e8, 1.0, 1e8]]
    cost = [[1, 2, 2], [1, 1, 1], [1, 2, 1]]
    problem = Problem.from_arrays(loss, {"size": cost}, {"size": 5})
    found = solve(problem, method, gap=0)
    assert found.objective == 1.2
    assert found.status == "optimal"


def test_interactions_of_options_that_are_out_of_the_question_do_not_set_the_unit():
    loss = [[1e15, 1.0], [1e15, 1.0], [3.3, 1.0]]
    pairs = Interactions(
        groups=np.array([[0, 1], [1, 2]]),
        options=np.array([[0, 0], [1, 1]]),
        loss=np.array([1e14, 0.5]),
    )
    problem = Problem.from_arrays(loss, {"size": np.ones((3, 2))}, {"size": 3}, interactions=pairs)
    assert solve(problem, gap=0).objective == 3.5


def test_the_least_achievable_is_exact_beside_a_huge_option():
    cost = [[1e12, 0.25], [1e12, 0.5]]
    problem = Problem.from_arrays([[0, 1], [0, 1]], {"size": cost}, {"size": 0.5})
    assert solve(problem).minimum == {"size": 0.75}
