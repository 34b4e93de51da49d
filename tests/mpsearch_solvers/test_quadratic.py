from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch_solvers import Interactions, MethodError, PeakRows, Problem, quadratic, solve
from mpsearch_solvers.evaluation import is_within_limits
from mpsearch_solvers.method import Run
from mpsearch_solvers.model import compile_problem
from mpsearch_solvers.quadratic import Quadratic
from mpsearch_solvers.quadratic_diffusion import diffuse
from mpsearch_solvers.quadratic_form import compile_form

sys.path.insert(0, str(Path(__file__).parent))
from instances import assert_same_answer


def interacting_problem(
    rng,
    groups: int,
    options: int,
    budgets: int,
    *,
    strength: float = 1.0,
    density: float = 1.0,
    ragged: bool = False,
    positive_definite: bool = False,
    shift: float = 0.0,
    **names,
) -> Problem:
    """Lognormal losses and costs, normal interactions (never positive semidefinite by chance)."""
    loss = rng.lognormal(size=(groups, options)) - shift
    allowed = np.ones((groups, options), dtype=bool)
    if ragged:
        allowed = rng.random((groups, options)) < 0.75
        allowed[np.arange(groups), rng.integers(options, size=groups)] = True
    costs, limits = {}, {}
    for k in range(budgets):
        cost = rng.lognormal(size=(groups, options))
        least = np.where(allowed, cost, np.inf).min(axis=1).sum()
        most = np.where(allowed, cost, -np.inf).max(axis=1).sum()
        costs[f"r{k}"] = cost
        limits[f"r{k}"] = float(least + rng.uniform(0.05, 0.8) * (most - least))
    places = groups * options
    values = strength * rng.normal(size=(places, places))
    if positive_definite:
        values = strength * values @ values.T / places
    one, two = np.triu_indices(places, 1)
    kept = (one // options != two // options) & (rng.random(one.size) < density)
    kept &= allowed.ravel()[one] & allowed.ravel()[two]
    one, two = one[kept], two[kept]
    pairs = Interactions(
        np.stack([one // options, two // options], axis=1),
        np.stack([one % options, two % options], axis=1),
        values[one, two],
    )
    return Problem.from_arrays(loss, costs, limits, allowed=allowed, interactions=pairs, **names)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 7),
    options=st.integers(1, 4),
    budgets=st.integers(0, 3),
    strength=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    density=st.sampled_from([0.2, 1.0]),
    ragged=st.booleans(),
    positive_definite=st.booleans(),
    shift=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_agrees_with_brute_force(
    seed, groups, options, budgets, strength, density, ragged, positive_definite, shift
):
    problem = interacting_problem(
        np.random.default_rng(seed),
        groups,
        options,
        budgets,
        strength=strength,
        density=density,
        ragged=ragged,
        positive_definite=positive_definite,
        shift=shift,
    )
    found = solve(problem, "quadratic", gap=0)
    best = solve(problem, "brute_force", gap=0)
    assert_same_answer(found, best)
    if best.objective is not None:
        assert found.gap == 0.0


@pytest.mark.parametrize("strength", [0.1, 1.0])
@pytest.mark.parametrize("groups", [12])
def test_agrees_with_brute_force_on_twelve_groups_whose_interactions_decide(groups, strength):
    rng = np.random.default_rng(groups)
    problem = interacting_problem(rng, groups, 3, 2, strength=strength)
    found = solve(problem, "quadratic", gap=0)
    assert_same_answer(found, solve(problem, "brute_force", gap=0))
    assert found.status in {"optimal", "infeasible"}


def test_fixed_forbidden_and_tied_groups_agree_with_brute_force():
    rng = np.random.default_rng(5)
    for _ in range(10):
        problem = interacting_problem(
            rng,
            7,
            3,
            1,
            strength=2.0,
            fixed={"1": "0"},
            forbidden=[("2", "1"), ("3", "2")],
            ties=[("0", "4", "5")],
        )
        found = solve(problem, "quadratic", gap=0)
        assert_same_answer(found, solve(problem, "brute_force", gap=0))
        if found.indices is not None:
            assert len({found.choice[name] for name in ("0", "4", "5")}) == 1


def test_a_weighted_goal_counts_interactions_as_loss():
    rng = np.random.default_rng(6)
    for _ in range(5):
        problem = interacting_problem(
            rng, 6, 3, 1, strength=3.0, goal={"minimize": {"loss": 2.0, "r0": 0.5}}
        )
        found = solve(problem, "quadratic", gap=0)
        assert_same_answer(found, solve(problem, "brute_force", gap=0))


@pytest.mark.parametrize("power", [-12, -5, 5, 12])
def test_the_choice_does_not_depend_on_the_unit_of_the_loss(power):
    rng = np.random.default_rng(7)
    for _ in range(3):
        problem = interacting_problem(rng, 14, 3, 1, strength=0.3)
        unit = 10.0**power
        pairs = problem.interactions
        scaled = Problem.from_arrays(
            problem.loss * unit,
            problem.costs,
            problem.limits,
            interactions=Interactions(pairs.groups, pairs.options, pairs.loss * unit),
        )
        assert solve(problem, "quadratic").choice == solve(scaled, "quadratic").choice


def test_every_bound_on_the_way_is_below_the_optimum_and_every_incumbent_above():
    rng = np.random.default_rng(8)
    problem = interacting_problem(rng, 11, 3, 1, strength=1.5)
    best = solve(problem, "brute_force", gap=0).objective
    seen = []
    found = solve(problem, "quadratic", gap=1e-3, progress=seen.append)
    assert len(seen) >= 2
    for progress in seen:
        assert progress.bound <= best + 1e-9
        assert progress.incumbent >= best - 1e-9
    assert found.bound <= best <= found.objective
    assert found.gap <= 1e-3


def test_thirty_dense_groups_are_proven_and_no_neighbour_is_better():
    rng = np.random.default_rng(9)
    problem = interacting_problem(rng, 30, 3, 2, strength=0.05)
    found = solve(problem, "quadratic")
    assert found.status == "optimal"
    loss = _losses(problem)
    for group in range(30):
        for column in range(3):
            other = found.indices.copy()
            other[group] = column
            if is_within_limits(problem, other):
                assert loss(other) >= found.bound - 1e-12


def test_a_spent_node_budget_leaves_a_feasible_answer_with_an_honest_gap():
    rng = np.random.default_rng(10)
    problem = interacting_problem(rng, 40, 3, 1, strength=3.0)
    found = solve(problem, Quadratic(nodes=3, rounds=5))
    assert found.status == "feasible"
    assert found.bound < found.objective
    assert found.gap > 1e-6
    assert "3 nodes" in found.note
    assert is_within_limits(problem, found.indices)


def test_more_options_than_branching_can_take_get_local_search_and_a_convex_bound(monkeypatch):
    monkeypatch.setattr(quadratic, "_BRANCH", 3)
    problem = interacting_problem(np.random.default_rng(11), 9, 3, 1, strength=5.0)
    found = solve(problem, "quadratic")
    assert found.bound <= solve(problem, "brute_force").objective + 1e-9
    assert found.status == "feasible"
    assert found.bound < found.objective
    assert "convex bound" in found.note


def test_more_options_than_a_dense_matrix_can_take_get_local_search_and_a_bound(monkeypatch):
    monkeypatch.setattr(quadratic, "_DENSE", 100)
    rng = np.random.default_rng(12)
    problem = interacting_problem(rng, 40, 3, 1, strength=0.1, density=0.1)
    found = solve(problem, Quadratic(rounds=1))
    assert found.status == "feasible"
    assert found.bound <= found.objective
    assert "relaxation bound" in found.note


def test_diffusion_bounds_from_below_and_is_exact_on_a_tree_without_budgets():
    rng = np.random.default_rng(13)
    for trial in range(30):
        problem = interacting_problem(
            rng, 6, 3, 2, strength=2.0, density=(0.2, 1.0)[trial % 2], ragged=trial % 3 == 0
        )
        best = solve(problem, "brute_force", gap=0).objective
        form = compile_form(compile_problem(problem))
        if best is not None:
            assert form.restore(diffuse(form, Run()).value) <= best + 1e-9
    for _ in range(5):
        whole = interacting_problem(rng, 7, 3, 0, strength=1.0)
        chain = np.diff(whole.interactions.groups, axis=1)[:, 0] == 1
        pairs = Interactions(
            *(
                part[chain]
                for part in (
                    whole.interactions.groups,
                    whole.interactions.options,
                    whole.interactions.loss,
                )
            )
        )
        problem = Problem.from_arrays(whole.loss, interactions=pairs)
        form = compile_form(compile_problem(problem))
        best = solve(problem, "brute_force", gap=0).objective
        assert form.restore(diffuse(form, Run()).value) == pytest.approx(best, abs=1e-2)


def test_a_time_limit_returns_the_best_so_far():
    problem = interacting_problem(np.random.default_rng(14), 50, 4, 2, strength=3.0)
    found = solve(problem, "quadratic", time_limit=1.0)
    assert found.status == "feasible"
    assert found.bound is not None
    assert is_within_limits(problem, found.indices)


def test_two_runs_with_one_seed_choose_alike():
    problem = interacting_problem(np.random.default_rng(15), 40, 3, 1, strength=2.0)
    method = Quadratic(nodes=20, rounds=5)
    first, second = (solve(problem, method, seed=3) for _ in range(2))
    assert first.choice == second.choice
    assert first.bound == second.bound


def test_an_infeasible_problem_names_what_clashes():
    problem = interacting_problem(np.random.default_rng(16), 6, 3, 2)
    tight = problem.with_limits(r0=1e-3)
    found = solve(tight, "quadratic")
    assert found.status == "infeasible"
    assert found.conflict == ("r0",)
    assert found.minimum["r0"] == solve(tight, "brute_force").minimum["r0"]


def test_a_limit_met_only_to_rounding_is_kept_by_exact_sums():
    pairs = Interactions(np.array([[0, 1]]), np.array([[0, 0]]), np.array([-1.0]))
    problem = Problem.from_arrays(
        [[0.0, 1.0], [0.0, 1.0]],
        {"size": [[1.0 + 1e-11, 0.5], [1.0, 0.5]]},
        {"size": 2.0},
        interactions=pairs,
    )
    found = solve(problem, "quadratic", gap=0)
    assert found.usage["size"] <= 2.0
    assert found.objective == solve(problem, "brute_force").objective == 1.0


def test_costs_that_differ_only_in_their_last_digits_agree_with_brute_force():
    rng = np.random.default_rng(18)
    for _ in range(10):
        plain = interacting_problem(rng, 6, 3, 1, strength=1.0)
        cost = 1e9 + 1e-3 * plain.costs["r0"]
        limit = float(np.sort(cost.sum(axis=0))[1])
        problem = Problem.from_arrays(
            plain.loss, {"r0": cost}, {"r0": limit}, interactions=plain.interactions
        )
        found = solve(problem, "quadratic", gap=0)
        assert_same_answer(found, solve(problem, "brute_force", gap=0))


def test_a_problem_without_interactions_is_solved_too():
    rng = np.random.default_rng(17)
    problem = Problem.from_arrays(
        rng.lognormal(size=(12, 3)), {"s": rng.lognormal(size=(12, 3))}, {"s": 12.0}
    )
    assert_same_answer(solve(problem, "quadratic", gap=0), solve(problem, "ilp", gap=0))


def test_a_peak_to_minimise_is_refused():
    peak = PeakRows(("a",), np.ones((1, 2, 2)), np.zeros(1))
    problem = Problem.from_arrays(
        np.ones((2, 2)), rows={"memory": peak}, goal={"minimize": "memory"}
    )
    with pytest.raises(MethodError, match="peak"):
        solve(problem, "quadratic")


def _losses(problem: Problem):
    """Total loss by a loop over pairs, independent of the package."""
    pairs = problem.interactions
    table = {
        (int(g), int(a), int(h), int(b)): float(v)
        for (g, h), (a, b), v in zip(pairs.groups, pairs.options, pairs.loss, strict=True)
    }

    def total(indices) -> float:
        value = sum(problem.loss[g, c] for g, c in enumerate(indices))
        for g in range(len(indices)):
            for h in range(g + 1, len(indices)):
                value += table[g, int(indices[g]), h, int(indices[h])]
        return value

    return total
