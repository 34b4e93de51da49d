from __future__ import annotations

import numpy as np
import pytest
from instances import assert_same_answer, random_problem

from mpsearch_solvers import BackendError, MethodError, Problem, solve
from mpsearch_solvers.ilp import Ilp, available_backends


def test_agrees_with_brute_force_on_two_hundred_problems_with_up_to_three_budgets():
    rng = np.random.default_rng(1)
    for trial in range(200):
        problem = random_problem(
            rng,
            groups=int(rng.integers(2, 8)),
            options=int(rng.integers(2, 5)),
            budgets=int(rng.integers(1, 4)),
            shift=(0.0, 0.8, 5.0)[trial % 3],
            ragged=trial % 2 == 1,
        )
        found = solve(problem, "ilp", gap=0)
        assert_same_answer(found, solve(problem, "brute_force"))
        assert found.gap in (None, 0.0)


@pytest.mark.parametrize("backend", available_backends())
def test_every_installed_backend_gives_the_optimum_and_a_bound_below_it(backend):
    rng = np.random.default_rng(2)
    for _ in range(10):
        problem = random_problem(rng, 6, 4, 2)
        found = solve(problem, Ilp(backend), gap=1e-3)
        best = solve(problem, "brute_force")
        assert found.status == best.status
        if best.objective is not None:
            assert found.bound <= best.objective <= found.objective
            assert backend in found.solver


@pytest.mark.parametrize("power", [-9, 9])
def test_the_choice_does_not_depend_on_the_unit_of_the_loss(power):
    rng = np.random.default_rng(3)
    for _ in range(10):
        problem = random_problem(rng, 12, 4, 2)
        scaled = Problem.from_arrays(problem.loss * 10.0**power, problem.costs, problem.limits)
        assert solve(problem, "ilp").choice == solve(scaled, "ilp").choice


def test_an_answer_that_overruns_by_less_than_the_solver_tolerance_is_not_returned():
    # Two options differ by 1e-11 of the limit: HiGHS takes the first for feasible.
    loss = [[0.0, 1.0], [0.0, 1.0]]
    cost = [[1.0 + 1e-11, 0.5], [1.0, 0.5]]
    problem = Problem.from_arrays(loss, {"size": cost}, {"size": 2.0})
    found = solve(problem, "ilp", gap=0)
    assert found.usage["size"] <= 2.0
    assert found.objective == 1.0
    assert found.status == "optimal"


def test_an_unknown_backend_is_refused_with_what_there_is():
    with pytest.raises(BackendError, match="nonesuch"):
        Ilp("nonesuch")


def test_interactions_are_refused_with_the_methods_that_can():
    problem = Problem.from_dict(
        {
            "groups": [
                {"name": "a", "options": [{"name": "x", "loss": 1, "costs": {"s": 1}}]},
                {"name": "b", "options": [{"name": "x", "loss": 1, "costs": {"s": 1}}]},
            ],
            "limits": {"s": 3},
            "interactions": [{"groups": ["a", "b"], "options": ["x", "x"], "loss": 1}],
        }
    )
    with pytest.raises(MethodError, match="quadratic"):
        solve(problem, "ilp")
