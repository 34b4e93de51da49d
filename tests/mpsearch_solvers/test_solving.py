from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from instances import assert_same_answer, random_problem

from mpsearch_solvers import MethodError, PeakRows, Problem, ProblemError, method_names, solve
from mpsearch_solvers.method import Outcome

EXACT = ("decomposition", "ilp", "brute_force")


def every_choice(problem: Problem):
    menus = [np.flatnonzero(row).tolist() for row in problem.allowed]
    return (np.array(choice) for choice in itertools.product(*menus))


def test_gap_and_status_follow_their_definition():
    found = solve(random_problem(np.random.default_rng(0), 40, 5, 2, tightness=0.3), gap=1e-2)
    assert found.status == "optimal"
    scale = max(abs(found.objective), abs(found.bound))
    assert found.gap == pytest.approx((found.objective - found.bound) / scale)


def test_usage_is_the_exact_sum_of_the_given_costs():
    problem = Problem.from_arrays([[0.0]] * 10, {"s": [[0.1]] * 10}, {"s": 1.0})
    found = solve(problem)
    assert found.usage == {"s": math.fsum([0.1] * 10)}
    assert found.status == "optimal"


@pytest.mark.parametrize("method", EXACT)
def test_a_negative_total_has_a_gap_relative_to_its_size(method):
    problem = Problem.from_arrays(
        [[-5.0, -1.0], [-3.0, 2.0]], {"s": [[2.0, 1.0], [2.0, 1.0]]}, {"s": 3.0}
    )
    found = solve(problem, method, gap=0)
    assert (found.status, found.objective, found.gap) == ("optimal", -4.0, 0.0)


@pytest.mark.parametrize("method", EXACT)
def test_an_optimum_of_zero_is_proven(method):
    problem = Problem.from_arrays(
        [[-1.0, 1.0], [-1.0, 1.0]], {"s": [[2.0, 1.0], [2.0, 1.0]]}, {"s": 3.0}
    )
    found = solve(problem, method)
    assert (found.status, found.objective, found.gap) == ("optimal", 0.0, 0.0)


@pytest.mark.parametrize("method", EXACT)
def test_ties_sum_their_members_and_share_an_option_by_name(method):
    rng = np.random.default_rng(1)
    for _ in range(10):
        loss, cost = rng.normal(size=(4, 3)), rng.lognormal(size=(4, 3))
        menus = [["a", "b", "c"], ["b", "c", "a"], ["a", "b", "c"], ["c", "x", "b"]]
        limit = float(cost.mean(axis=1).sum())
        problem = Problem.from_arrays(
            loss, {"s": cost}, {"s": limit}, options=menus, ties=[["0", "1"], ["1", "3"]]
        )
        best = min(
            (
                math.fsum(loss[g, c] for g, c in enumerate(choice))
                for choice in every_choice(problem)
                if len({menus[g][choice[g]] for g in (0, 1, 3)}) == 1
                and math.fsum(cost[g, c] for g, c in enumerate(choice)) <= limit
            ),
            default=None,
        )
        found = solve(problem, method, gap=0)
        assert found.objective == (None if best is None else pytest.approx(best, abs=1e-12))


@pytest.mark.parametrize("method", ["decomposition", "ilp", "brute_force", "greedy"])
def test_fixed_and_forbidden_options_hold(method):
    rng = np.random.default_rng(2)
    problem = random_problem(rng, 6, 3, 1, tightness=0.6)
    narrowed = Problem.from_arrays(
        problem.loss, problem.costs, problem.limits, fixed={"0": "2"}, forbidden=[("1", "0")]
    )
    found = solve(narrowed, method)
    assert found.choice["0"] == "2"
    assert found.choice["1"] != "0"


def test_a_peak_is_the_largest_step_and_the_binding_one_is_named():
    rng = np.random.default_rng(3)
    for _ in range(20):
        loss = rng.lognormal(size=(5, 3))
        cost = rng.lognormal(size=(4, 5, 3)) * (rng.random((4, 5, 1)) < 0.6)
        base = rng.random(4)
        steps = PeakRows(("a", "b", "c", "d"), cost, base)

        def peak(choice, cost=cost, base=base):
            return max(
                math.fsum([base[s], *(cost[s, g, c] for g, c in enumerate(choice))])
                for s in range(4)
            )

        free = Problem.from_arrays(loss, rows={"memory": steps})
        limit = float(np.median([peak(choice) for choice in every_choice(free)]))
        problem = Problem.from_arrays(loss, rows={"memory": steps}, limits={"memory": limit})
        best = min(
            math.fsum(loss[g, c] for g, c in enumerate(choice))
            for choice in every_choice(problem)
            if peak(choice) <= limit
        )
        for method in EXACT:
            found = solve(problem, method, gap=0)
            assert found.objective == pytest.approx(best, rel=1e-12)
            assert found.usage["memory"] == peak(found.indices)
            at = steps.steps.index(found.binding_steps["memory"])
            chosen = [cost[at, g, c] for g, c in enumerate(found.indices)]
            assert math.fsum([base[at], *chosen]) == found.usage["memory"]
        least = solve(
            Problem.from_arrays(loss, rows={"memory": steps}, goal={"minimize": "memory"})
        )
        assert least.objective == pytest.approx(min(peak(c) for c in every_choice(free)), rel=1e-9)
        assert least.method == "ilp"


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize(
    "goal",
    [
        {"minimize": "worst_loss"},
        {"minimize": "r0"},
        {"minimize": "r0", "max_loss": 4.0},
        {"minimize": {"loss": 1.0, "r1": 0.3}},
        {"minimize": {"loss": -1.0, "r0": 2.0}, "max_loss": 6.0},
    ],
)
def test_every_goal_gives_what_enumeration_gives(goal, method):
    rng = np.random.default_rng(4)
    for _ in range(6):
        plain = random_problem(rng, 5, 3, 2, tightness=0.5)
        problem = Problem.from_arrays(plain.loss, plain.costs, plain.limits, goal=goal)

        def value(choice, problem=problem):
            picked = {
                "loss": math.fsum(problem.loss[g, c] for g, c in enumerate(choice)),
                "r0": math.fsum(problem.costs["r0"][g, c] for g, c in enumerate(choice)),
                "r1": math.fsum(problem.costs["r1"][g, c] for g, c in enumerate(choice)),
            }
            if any(picked[k] > limit.max for k, limit in problem.limits.items()):
                return math.inf
            if picked["loss"] > goal.get("max_loss", math.inf):
                return math.inf
            if goal["minimize"] == "worst_loss":
                return max(problem.loss[g, c] for g, c in enumerate(choice))
            weights = goal["minimize"]
            weights = {weights: 1.0} if isinstance(weights, str) else weights
            return math.fsum(w * picked[k] for k, w in weights.items())

        best = min(value(choice) for choice in every_choice(problem))
        found = solve(problem, method, gap=0)
        if best == math.inf:
            assert found.status == "infeasible"
        else:
            assert found.status == "optimal"
            assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-12)
            assert found.bound <= found.objective


def test_the_least_worst_loss_breaks_ties_by_the_sum():
    problem = Problem.from_arrays(
        [[5.0, 5.0], [1.0, 4.0]],
        {"s": [[1.0, 1.0], [1.0, 1.0]]},
        {"s": 2.0},
        goal={"minimize": "worst_loss"},
    )
    found = solve(problem, gap=0)
    assert (found.objective, found.loss) == (5.0, 6.0)


def test_infeasible_names_the_least_of_each_resource_and_the_clash():
    # Cheap in one resource is dear in the other; the third is harmless.
    size = np.array([[1.0, 4.0], [2.0, 5.0]])
    time = np.array([[6.0, 1.0], [5.0, 2.0]])
    spare = np.ones((2, 2))
    problem = Problem.from_arrays(
        np.zeros((2, 2)),
        {"size": size, "time": time, "spare": spare},
        {"size": 5.0, "time": 5.0, "spare": 9.0},
    )
    found = solve(problem)
    assert (found.status, found.objective, found.indices) == ("infeasible", None, None)
    assert found.minimum == {"size": 3.0, "time": 3.0, "spare": 2.0}
    assert found.minimum_given_others["size"] == 9.0
    assert found.minimum_given_others["time"] == 11.0
    assert found.minimum_given_others["spare"] is None
    assert set(found.conflict) == {"size", "time"}
    assert found.to_dict()["objective"] is None


def test_one_impossible_limit_conflicts_alone():
    problem = Problem.from_arrays(
        [[1.0]],
        {"s": [[2.0]], "t": [[1.0]], "u": [[1.0]]},
        {"s": 1.0, "t": 5.0, "u": {"min": 0.5}},
    )
    found = solve(problem)
    assert found.conflict == ("s",)
    assert found.maximum == {"u": 1.0}


@pytest.mark.parametrize("gap", [1e-6, 0.3])
def test_the_least_given_the_others_is_no_approximation_however_coarse_the_gap(gap):
    rng = np.random.default_rng(11)
    seen = 0
    for _ in range(40):
        problem = random_problem(rng, 5, 4, 2, tightness=0.5)
        usages = np.array(
            [
                [math.fsum(cost[range(5), choice]) for cost in problem.costs.values()]
                for choice in every_choice(problem)
            ]
        )
        first, second = problem.costs
        most = float(np.median(usages[:, 1]))
        least = usages[usages[:, 1] <= most, 0].min()
        found = solve(problem.with_limits(**{first: 0.999 * least, second: most}), gap=gap)
        assert found.status == "infeasible"
        assert found.minimum_given_others[first] == pytest.approx(least, rel=1e-6)
        seen += least > usages[:, 0].min()
    assert seen > 10


def test_what_a_method_could_not_finish_is_not_called_the_least(monkeypatch):
    from mpsearch_solvers import infeasibility

    def given_up(method, model, run):
        worst = np.array([row.argmax() for row in model.objective])
        return Outcome(worst, None, exhausted=False)

    monkeypatch.setattr(infeasibility, "solve_narrowed", given_up)
    size, time = np.array([[1.0, 4.0], [2.0, 5.0]]), np.array([[6.0, 1.0], [5.0, 2.0]])
    problem = Problem.from_arrays(
        np.zeros((2, 2)), {"size": size, "time": time}, {"size": 5.0, "time": 5.0}
    )
    found = solve(problem)
    assert found.status == "infeasible"
    assert found.minimum_given_others == {}
    assert "stopped the analysis" in found.note


def test_a_loss_limit_takes_part_in_the_conflict():
    problem = Problem.from_arrays(
        [[3.0, 1.0]], {"s": [[1.0, 2.0]]}, {"s": 1.0}, goal={"minimize": "s", "max_loss": 2.0}
    )
    found = solve(problem)
    assert found.status == "infeasible"
    assert set(found.conflict) == {"s", "loss"}


@pytest.mark.parametrize("method", ["decomposition", "ilp", "greedy", "dp", "brute_force", "auto"])
def test_no_budget_is_ever_exceeded_by_the_exact_sum(method):
    rng = np.random.default_rng(6)
    for trial in range(60):
        budgets = 1 if method == "dp" else int(rng.integers(1, 4))
        problem = random_problem(rng, 6, 4, budgets, shift=(0, 1)[trial % 2])
        tenths = {name: np.round(cost * 10) * 0.1 for name, cost in problem.costs.items()}
        limits = {name: round(limit.max, 1) for name, limit in problem.limits.items()}
        found = solve(Problem.from_arrays(problem.loss, tenths, limits), method)
        if found.indices is None:
            continue
        for name, cost in tenths.items():
            usage = math.fsum(cost[g, c] for g, c in enumerate(found.indices))
            assert usage == found.usage[name] <= limits[name]


def test_continuous_water_filling_bounds_the_integer_answer_from_below_and_nearly_meets_it():
    # loss = gamma 2^(-2b): the continuous optimum is b = log2(gamma / n) / 2 + c.
    rng = np.random.default_rng(7)
    groups = 300
    gamma, size = rng.lognormal(0, 1.5, groups), rng.lognormal(0, 0.5, groups)
    bits = np.linspace(0, 16, 129)
    loss = gamma[:, None] * 4.0**-bits
    total = 6.0 * size.sum()
    problem = Problem.from_arrays(loss, {"size": size[:, None] * bits}, {"size": total})
    found = solve(problem, gap=1e-9)
    level = (total - 0.5 * (size * np.log2(gamma / size)).sum()) / size.sum()
    best = 0.5 * np.log2(gamma / size) + level
    assert ((best > 0) & (best < 16)).all()
    continuous = (gamma * 4.0**-best).sum()
    assert continuous <= found.objective <= continuous * 1.01
    assert np.abs(bits[found.indices] - best).max() <= 0.125 + 1e-9


def test_bad_terms_are_refused():
    problem = random_problem(np.random.default_rng(8), 3, 2, 1)
    for terms in ({"gap": -1}, {"gap": 1}, {"gap": math.nan}, {"time_limit": 0}):
        with pytest.raises(MethodError):
            solve(problem, **terms)
    with pytest.raises(MethodError, match="known: auto, decomposition"):
        solve(problem, "simplex")


def test_auto_says_why():
    found = solve(random_problem(np.random.default_rng(9), 3, 2, 1))
    assert found.method == "decomposition"
    assert found.reason
    assert "auto" in method_names()


def test_brute_force_refuses_what_it_cannot_enumerate():
    with pytest.raises(MethodError, match="brute force takes at most"):
        solve(random_problem(np.random.default_rng(10), 40, 8, 1), "brute_force")


def test_solutions_of_all_methods_agree_on_a_problem_with_many_equal_groups():
    loss = np.tile([[3.0, 1.0, 0.0]], (10, 1))
    cost = np.tile([[1.0, 2.0, 4.0]], (10, 1))
    problem = Problem.from_arrays(loss, {"s": cost}, {"s": 23.0})
    answers = [solve(problem, method, gap=0) for method in (*EXACT, "dp")]
    for found in answers:
        assert_same_answer(found, answers[0])


@pytest.mark.parametrize(
    ("argument", "value"),
    [("gap", "x"), ("gap", None), ("gap", True), ("time_limit", "3"), ("method", None)],
)
def test_an_argument_of_the_wrong_type_is_refused_by_name(argument, value):
    problem = Problem.from_arrays([[1, 2]])
    with pytest.raises(MethodError, match=f"{argument} is {value!r}"):
        solve(problem, **{argument: value})


def test_a_bare_document_is_sent_to_from_dict():
    with pytest.raises(ProblemError, match="from_dict"):
        solve({"groups": []})


def test_a_menu_of_thousands_of_options_is_solved_within_the_time_given():
    count = 5_000
    loss = [np.linspace(1, 0, count)]
    cost = [np.linspace(0, 1, count)]
    problem = Problem.from_arrays(loss, {"size": cost}, {"size": 0.5})
    found = solve(problem)
    assert found.status == "optimal"
    assert found.objective == solve(problem, "brute_force").objective
    hasty = solve(problem, time_limit=0.05)
    assert hasty.bound <= found.objective <= hasty.objective


def test_schedule_steps_of_the_same_name_are_steps_of_their_own():
    # A module that runs twice gives two steps one name; the second decides here.
    peak = PeakRows(("conv", "conv"), np.array([[[5.0, 1.0]], [[1.0, 4.0]]]), np.zeros(2))
    problem = Problem.from_arrays([[0.0, 1.0]], limits={"memory": 4.5}, rows={"memory": peak})
    found = solve(problem)
    assert found.choice == {"0": "1"}
    assert found.usage == {"memory": 4.0}
    assert solve(problem.with_limits(memory=3.5)).status == "infeasible"
