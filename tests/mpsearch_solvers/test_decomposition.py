from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import assert_same_answer, random_problem

from mpsearch_solvers import MethodError, PeakRows, Problem, solve
from mpsearch_solvers.decomposition import Decomposition
from mpsearch_solvers.presolve import Presolve

numbers = st.one_of(
    st.integers(-5, 5).map(float),
    st.integers(-9, 9).map(lambda tenth: tenth * 0.1),
    st.floats(-1e6, 1e6, allow_nan=False, width=32),
)


@st.composite
def problems(draw, most_budgets: int = 4) -> Problem:
    """Small problems whose limits are the usage of some allocation, to the last bit."""
    groups, options = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    size = groups * options
    table = st.lists(numbers, min_size=size, max_size=size).map(
        lambda values: np.array(values).reshape(groups, options)
    )
    loss = draw(table)
    costs, limits = {}, {}
    for number in range(draw(st.integers(0, most_budgets))):
        cost = draw(table)
        choice = [draw(st.integers(0, options - 1)) for _ in range(groups)]
        usage = float(sum(cost[group, option] for group, option in enumerate(choice)))
        costs[f"r{number}"] = cost
        limits[f"r{number}"] = draw(st.sampled_from([usage, {"min": usage}]))
    return Problem.from_arrays(loss, costs, limits)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(problems())
def test_gap_zero_equals_brute_force_on_any_small_problem(problem):
    best = solve(problem, "brute_force")
    found = solve(problem, "decomposition", gap=0)
    assert found.status == best.status
    if best.objective is not None:
        unit = 1e-12 * float(np.abs(problem.loss).max(axis=1).sum())
        assert abs(found.objective - best.objective) <= unit
        assert found.gap == 0.0


@settings(max_examples=300, deadline=None)
@given(problems(most_budgets=1))
def test_dynamic_programming_equals_brute_force_on_any_small_problem(problem):
    best = solve(problem, "brute_force")
    found = solve(problem, "dp", gap=0)
    assert found.status == best.status
    if best.objective is not None:
        unit = 1e-12 * float(np.abs(problem.loss).max(axis=1).sum())
        assert abs(found.objective - best.objective) <= unit


def test_gap_zero_equals_a_mip_solver_at_gap_zero_on_medium_problems():
    rng = np.random.default_rng(5)
    for trial in range(12):
        groups = int(rng.integers(50, 120))
        problem = random_problem(rng, groups, 4, 1 + trial % 2, ragged=trial % 3 == 0)
        found = solve(problem, "decomposition", gap=0)
        assert found.gap == 0.0
        assert_same_answer(found, solve(problem, "ilp", gap=0))


@pytest.mark.parametrize("unit", [1.0, 0.1])
def test_few_kinds_of_groups_under_two_budgets_are_solved_to_the_last_bit(unit):
    rng = np.random.default_rng(17)
    bits = np.arange(5) + 2.0
    kind = rng.integers(1, 4, size=40)
    loss = kind[:, None] * 4.0**-bits
    costs = {"a": kind[:, None] * bits * unit, "b": (4 - kind)[:, None] * bits * unit}
    limits = {"a": 4.3 * unit * float(kind.sum()), "b": 4.1 * unit * float((4 - kind).sum())}
    problem = Problem.from_arrays(loss, costs, limits)
    found = solve(problem, "decomposition", gap=0)
    assert found.gap == 0.0
    assert_same_answer(found, solve(problem, "ilp", gap=0))


def test_more_binding_rows_than_lists_can_bear_still_give_a_bound_and_an_answer():
    rng = np.random.default_rng(18)
    problem = random_problem(rng, 40, 5, 10, tightness=0.45)
    found = solve(problem, "decomposition", gap=1e-3, time_limit=4)
    assert found.status in {"optimal", "feasible", "unknown"}
    if found.objective is not None:
        assert found.bound <= found.objective
        assert "MIP solver" in found.note or found.status == "optimal"


def test_branching_alone_reaches_the_optimum_that_lists_find():
    rng = np.random.default_rng(6)
    branching = Decomposition(sizes=(4,), node_sizes=(8,), nodes=100_000)
    for _ in range(15):
        problem = random_problem(rng, 9, 4, 3)
        assert_same_answer(solve(problem, branching, gap=0), solve(problem, "brute_force"))


def test_the_core_handed_to_a_mip_solver_gives_the_same_optimum():
    rng = np.random.default_rng(7)
    handing = Decomposition(sizes=(4,), node_sizes=(4,), nodes=0)
    for _ in range(10):
        problem = random_problem(rng, 9, 4, 3)
        found = solve(problem, handing, gap=0)
        assert_same_answer(found, solve(problem, "brute_force"))


@pytest.mark.parametrize(
    "steps",
    list(itertools.product([True, False], repeat=4)),
    ids=lambda s: "".join("01"[x] for x in s),
)
def test_every_presolve_step_keeps_the_optimum(steps):
    rng = np.random.default_rng(8)
    names = ("scaling", "dominated", "redundant_rows", "fixing")
    method = Decomposition(Presolve(**dict(zip(names, steps, strict=True))))
    for trial in range(6):
        problem = random_problem(rng, 7, 4, 1 + trial % 3, ragged=True)
        assert_same_answer(solve(problem, method, gap=0), solve(problem, "brute_force"))


@pytest.mark.parametrize("budgets", [1, 3])
def test_the_bound_never_exceeds_the_optimum_and_the_gap_is_kept(budgets):
    rng = np.random.default_rng(9)
    for gap in (1e-1, 1e-3, 1e-6):
        problem = random_problem(rng, 60, 6, budgets)
        found = solve(problem, "decomposition", gap=gap)
        best = solve(problem, "decomposition", gap=0)
        assert found.status == "optimal"
        assert found.gap <= gap
        assert found.bound <= best.objective <= found.objective


@pytest.mark.parametrize("power", range(-12, 13))
def test_the_choice_does_not_depend_on_the_unit_of_the_loss(power):
    rng = np.random.default_rng(10)
    for _ in range(3):
        problem = random_problem(rng, 30, 5, 2)
        scaled = Problem.from_arrays(problem.loss * 10.0**power, problem.costs, problem.limits)
        for method in ("decomposition", "greedy"):
            assert solve(problem, method).choice == solve(scaled, method).choice


def test_a_thousand_groups_with_three_binding_budgets_are_proven_to_a_millionth():
    rng = np.random.default_rng(11)
    groups, options = 1000, 8
    size = rng.lognormal(0, 1, groups)
    bits = np.arange(1, options + 1) + 1.0
    loss = rng.lognormal(0, 1, groups)[:, None] * 4.0**-bits
    costs = {
        "size": size[:, None] * bits,
        "latency": rng.lognormal(0, 1, groups)[:, None] * bits**0.7,
        "energy": rng.lognormal(0, 1, groups)[:, None] * bits**1.3,
    }
    limits = {name: float(cost.mean(axis=1).sum()) for name, cost in costs.items()}
    found = solve(Problem.from_arrays(loss, costs, limits), gap=1e-6)
    assert found.status == "optimal"
    assert found.gap <= 1e-6
    assert found.method == "decomposition"
    # Strong duality: the bound is not above what the prices prove.
    assert all(price >= 0 for price in found.shadow_prices.values())


def test_the_shadow_price_predicts_what_a_little_more_budget_saves():
    rng = np.random.default_rng(12)
    problem = random_problem(rng, 400, 6, 1, tightness=0.4)
    base = solve(problem, gap=1e-8)
    limit = problem.limits["r0"].max
    extra = 0.01 * limit
    more = solve(problem.with_limits(r0=limit + extra), gap=1e-8)
    saved = (base.objective - more.objective) / extra
    assert saved == pytest.approx(base.shadow_prices["r0"], rel=0.1)


def test_a_neighbour_budget_starts_from_the_last_answer_and_agrees_with_a_fresh_solve():
    rng = np.random.default_rng(13)
    problem = random_problem(rng, 80, 5, 2, tightness=0.4)
    first = solve(problem, gap=0)
    near = problem.with_limits(r0=problem.limits["r0"].max * 1.02)
    assert_same_answer(solve(near, gap=0, start=first), solve(near, gap=0))


def test_time_runs_out_with_the_best_answer_so_far_and_a_bound_below_it():
    rng = np.random.default_rng(14)
    problem = random_problem(rng, 20_000, 8, 3)
    found = solve(problem, gap=0, time_limit=1e-3)
    assert found.status in {"feasible", "unknown"}
    if found.objective is not None and found.bound is not None:
        assert found.bound <= found.objective


def test_progress_reports_bounds_below_incumbents():
    reports = []
    problem = random_problem(np.random.default_rng(15), 300, 6, 3)
    solve(problem, gap=1e-6, progress=reports.append)
    assert reports
    assert all(
        report.bound <= report.incumbent + 1e-9 * abs(report.incumbent)
        for report in reports
        if report.bound is not None and report.incumbent is not None
    )


def test_a_peak_as_the_goal_is_refused():
    peak = PeakRows(("s",), np.ones((1, 2, 2)), np.zeros(1))
    problem = Problem.from_arrays(
        [[0, 1], [0, 1]], rows={"memory": peak}, goal={"minimize": "memory"}
    )
    with pytest.raises(MethodError, match="peak"):
        solve(problem, "decomposition")


def test_two_budgets_are_refused_by_dynamic_programming():
    problem = random_problem(np.random.default_rng(16), 5, 3, 2, tightness=0.3)
    with pytest.raises(MethodError, match="2 limits"):
        solve(problem, "dp")
