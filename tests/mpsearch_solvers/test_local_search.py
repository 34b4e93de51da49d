from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch_solvers import Interactions, MethodError, PeakRows, Problem, solve
from mpsearch_solvers.evaluation import is_within_limits, total_loss
from mpsearch_solvers.local_search import LocalSearch
from mpsearch_solvers.local_search_moves import Descent, search
from mpsearch_solvers.method import Run
from mpsearch_solvers.model import compile_problem
from mpsearch_solvers.quadratic_form import compile_form


def knapsack(groups: int = 8, options: int = 3, seed: int = 0, **names) -> Problem:
    rng = np.random.default_rng(seed)
    cost = rng.lognormal(size=(groups, options))
    limit = cost.min(axis=1).sum() + 0.4 * np.ptp(cost, axis=1).sum()
    loss = rng.lognormal(size=(groups, options))
    return Problem.from_arrays(loss, {"size": cost}, {"size": float(limit)}, **names)


def chained(seed: int, groups: int, strength: float) -> Problem:
    rng = np.random.default_rng(seed)
    count = 4 * groups
    pairs = np.sort(rng.integers(groups, size=(count, 2)), axis=1)
    kept = pairs[:, 0] != pairs[:, 1]
    pairs = pairs[kept]
    options = rng.integers(3, size=pairs.shape)
    loss = strength * rng.normal(size=len(pairs))
    return knapsack(groups, seed=seed, interactions=Interactions(pairs, options, loss))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from([0.1, 1.0, 5.0]))
def test_ends_within_the_limits_where_no_change_and_no_swap_is_better(seed, groups, strength):
    problem = chained(seed, groups, strength)
    model = compile_problem(problem)
    start = np.argmin(problem.costs["size"], axis=1)
    found = search(model, compile_form(model), start, Run(), rounds=3)
    assert is_within_limits(problem, found)
    value = total_loss(problem, found)
    for one in range(groups):
        for two in range(one, groups):
            for first in range(3):
                for second in range(3):
                    other = found.copy()
                    other[one], other[two] = first, second
                    if is_within_limits(problem, other):
                        assert total_loss(problem, other) >= value - 1e-9 * max(1.0, strength)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_running_sums_of_a_walk_equal_sums_from_scratch(seed):
    problem = chained(seed, 8, 2.0)
    model = compile_problem(problem)
    form = compile_form(model)
    walk = Descent(model, form, np.argmin(problem.costs["size"], axis=1))
    rng = np.random.default_rng(seed)
    for _ in range(5):
        walk.shake(rng, 3)
        walk.settle(Run(), rng)
    np.testing.assert_allclose(walk.field, form.field(walk.indices), atol=1e-9)
    usage = form.cost[:, np.arange(8), walk.indices].sum(axis=1)
    np.testing.assert_allclose(walk.usage, usage, atol=1e-9)
    assert form.restore(form.value(walk.indices)) == pytest.approx(
        total_loss(problem, walk.indices)
    )


def test_predicted_search_claims_no_bound_and_is_never_worse_than_its_exact_start():
    problem = knapsack(20)
    found = solve(problem, "local_search")
    assert found.status == "feasible"
    assert found.bound is None
    assert found.objective <= solve(problem, "ilp").objective * (1 + 1e-4)


def test_interactions_are_searched_too():
    worse = 0
    for seed in range(8):
        problem = chained(seed, 8, 2.0)
        best = solve(problem, "brute_force").objective
        found = solve(problem, "local_search").objective
        assert found >= best - 1e-9
        worse += found > best + 1e-9
    assert worse <= 1


def hidden_loss(indices: np.ndarray) -> float:
    """A measured loss with an interaction that the problem's own losses do not know."""
    target = (np.arange(len(indices)) * 2) % 3
    return float(((indices - target) ** 2).sum()) + 2.0 * float(indices[0] == indices[1])


def test_a_measured_search_improves_on_the_exact_start_and_measures_nothing_twice():
    problem = knapsack(9)
    seen = []

    def measure(indices):
        seen.append(tuple(indices.tolist()))
        return hidden_loss(indices)

    found = solve(problem, LocalSearch(objective=measure, candidates=40, rounds=6))
    start = solve(problem, "ilp").indices
    assert seen[0] == tuple(start.tolist())
    assert len(seen) == len(set(seen))
    assert all(is_within_limits(problem, np.array(one)) for one in seen)
    assert hidden_loss(found.indices) == min(hidden_loss(np.array(one)) for one in seen)
    assert hidden_loss(found.indices) < hidden_loss(start)
    assert f"{len(seen)} allocations measured" in found.note
    assert found.bound is None


def test_a_measured_search_reaches_the_optimum_of_a_separable_loss():
    problem = knapsack(7)
    target = solve(problem, "brute_force").indices

    def measure(indices):
        return float((indices != target).sum())

    found = solve(problem, LocalSearch(objective=measure, candidates=60), seed=2)
    assert measure(found.indices) == 0.0


def test_the_executor_changes_nothing():
    problem = knapsack(9)
    alone = solve(problem, LocalSearch(objective=hidden_loss, candidates=20, rounds=4), seed=5)
    with ThreadPoolExecutor(3) as threads:
        method = LocalSearch(objective=hidden_loss, candidates=20, rounds=4, executor=threads)
        assert solve(problem, method, seed=5).choice == alone.choice


def test_tied_groups_move_together():
    problem = knapsack(6, ties=[("0", "3")])
    seen = []

    def measure(indices):
        seen.append(indices.copy())
        return hidden_loss(indices)

    solve(problem, LocalSearch(objective=measure, candidates=20, rounds=3))
    assert all(one[0] == one[3] for one in seen)


def test_a_failing_measurement_ends_the_run_unless_it_is_caught():
    calls = []

    def measure(indices):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return hidden_loss(indices)

    with pytest.raises(RuntimeError, match="out of memory"):
        solve(knapsack(6), LocalSearch(objective=measure))
    calls.clear()
    found = solve(knapsack(6), LocalSearch(objective=measure, catch=(RuntimeError,), rounds=2))
    assert "1 failed" in found.note


@pytest.mark.parametrize("threads", [0, 2])
def test_a_time_limit_ends_a_measured_search_with_the_best_so_far(threads):
    def measure(indices):
        time.sleep(0.03)
        return hidden_loss(indices)

    executor = ThreadPoolExecutor(threads) if threads else None
    method = LocalSearch(objective=measure, executor=executor)
    found = solve(knapsack(20), method, time_limit=1.0)
    assert found.status == "feasible"
    assert "the time limit" in found.note
    if executor is not None:
        executor.shutdown()


def test_an_exhausted_neighbourhood_ends_the_search():
    problem = Problem.from_arrays(np.ones((2, 2)), {"s": np.ones((2, 2))}, {"s": 2.0})
    found = solve(problem, LocalSearch(objective=lambda x: float(x.sum())))
    assert "nothing left to measure" in found.note
    assert found.indices.tolist() == [0, 0]


def test_an_infeasible_problem_is_diagnosed_like_any_other():
    problem = knapsack(6).with_limits(size=1e-3)
    found = solve(problem, "local_search")
    assert found.status == "infeasible"
    assert found.conflict == ("size",)


def test_a_neighbours_answer_is_the_start_where_it_is_feasible():
    problem = knapsack(9)
    other = solve(problem.with_limits(size=problem.limits["size"].max * 0.9), "ilp")
    seen = []

    def measure(indices):
        seen.append(tuple(indices.tolist()))
        return hidden_loss(indices)

    solve(problem, LocalSearch(objective=measure, candidates=5, rounds=1), start=other)
    assert seen[0] == tuple(other.indices.tolist())


def test_what_does_not_suit_is_refused():
    peak = PeakRows(("a",), np.ones((1, 2, 2)), np.zeros(1))
    minimal = Problem.from_arrays(np.ones((2, 2)), rows={"m": peak}, goal={"minimize": "m"})
    with pytest.raises(MethodError, match="peak"):
        solve(minimal, "local_search")
    worst = knapsack(3, goal={"minimize": "worst_loss"})
    with pytest.raises(MethodError, match="replaces the goal"):
        solve(worst, LocalSearch(objective=hidden_loss))
    with pytest.raises(MethodError, match="rounds is 0"):
        LocalSearch(rounds=0)
    with pytest.raises(MethodError, match="2 values"):
        solve(knapsack(3), LocalSearch(objective=lambda _: (1.0, 2.0)))


def test_a_measured_search_may_minimise_under_a_peak():
    peak = PeakRows(("a", "b"), np.array([[[1.0, 2], [1, 2]], [[2, 1], [2, 1]]]), np.zeros(2))
    problem = Problem.from_arrays(np.zeros((2, 2)), rows={"m": peak}, limits={"m": 3.0})
    found = solve(problem, LocalSearch(objective=lambda x: float(x[0] * 2 + x[1])))
    assert is_within_limits(problem, found.indices)
    assert found.indices.tolist() == [0, 1]
