from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.budgets import limit_of, parse_amount
from mpsearch.errors import (
    BudgetError,
    DocumentError,
    InfeasibleError,
    InputError,
    MismatchError,
    UnknownNameError,
)
from mpsearch.schemas.costs import PeakStep

OPTIONS = ["w2a8", "w4a8", "w8a8"]


def make_costs(memory: np.ndarray, latency: np.ndarray | None = None) -> mp.Costs:
    groups = [f"g{i}" for i in range(len(memory))]
    values = {"weight_memory": memory}
    units = {"weight_memory": "B"}
    if latency is not None:
        values["latency"] = latency
        units["latency"] = "s"
    baseline = {"weight_memory": float(4 * memory.max(axis=1).sum())}
    return mp.Costs(groups=groups, options=OPTIONS, values=values, units=units, baseline=baseline)


def make_profile(loss: np.ndarray, **keywords: object) -> mp.Profile:
    return mp.Profile.from_arrays(loss, options=OPTIONS, **keywords)  # type: ignore[arg-type]


def best_by_enumeration(loss: np.ndarray, tables: list[tuple[np.ndarray, float]]) -> float | None:
    rows = np.arange(len(loss))
    feasible = [
        math.fsum(loss[rows, list(choice)])
        for choice in itertools.product(range(loss.shape[1]), repeat=len(loss))
        if all(math.fsum(t[rows, list(choice)]) <= limit for t, limit in tables)
    ]
    return min(feasible, default=None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_two_budgets_at_once_give_the_enumerated_optimum(seed: int, groups: int) -> None:
    generator = np.random.default_rng(seed)
    memory = np.sort(generator.lognormal(0, 1, (groups, 3)), axis=1)
    latency = generator.lognormal(0, 1, (groups, 3)) * 1e-3
    loss = generator.normal(0, 1e-5, (groups, 3))
    profile, costs = make_profile(loss), make_costs(memory, latency)
    budgets = {"weight_memory": "60%", "latency": "70%"}
    limits = {name: limit_of(parse_amount(name, text), costs) for name, text in budgets.items()}
    expected = best_by_enumeration(
        loss, [(memory, limits["weight_memory"]), (latency, limits["latency"])]
    )
    if expected is None:
        with pytest.raises(InfeasibleError, match="together"):
            mp.allocate(profile, costs, budgets, gap=0.0)
        return
    answer = mp.allocate(profile, costs, budgets, gap=0.0)
    assert answer.status == "optimal"
    assert answer.predicted_loss == pytest.approx(expected, rel=1e-9, abs=1e-15)
    for use in answer.budgets.values():
        assert use.usage <= use.limit


def test_the_answer_names_layers_units_and_requests() -> None:
    memory = np.array([[2.0, 4.0, 8.0], [20.0, 40.0, 80.0]])
    profile = make_profile(
        np.array([[1.0, 0.5, 0.0], [3.0, 0.1, 0.0]]), members={"g0": ["q", "k", "v"]}
    )
    answer = mp.allocate(profile, make_costs(memory), {"weight_memory": "50 B"})
    assert answer.layers == {"q": "w8a8", "k": "w8a8", "v": "w8a8", "g1": "w4a8"}
    assert answer.budgets["weight_memory"].requested == "50 B"
    assert answer.budgets["weight_memory"].usage == 48.0
    assert answer.budgets["weight_memory"].least == 22.0
    assert answer.verification is None


def test_one_budget_too_small_names_the_least_achievable() -> None:
    memory = np.array([[2.0, 4.0, 8.0], [20.0, 40.0, 80.0]])
    with pytest.raises(InfeasibleError, match=r"22 B \(all groups at w2a8\)") as caught:
        mp.allocate(make_profile(np.zeros((2, 3))), make_costs(memory), {"weight_memory": "21 B"})
    assert caught.value.minimum == {"weight_memory": 22.0}
    assert caught.value.exit_code == 3


def test_budgets_that_clash_say_what_each_could_reach_within_the_others() -> None:
    memory = np.array([[1.0, 2.0, 3.0]])
    latency = np.array([[3.0, 2.0, 1.0]])
    with pytest.raises(InfeasibleError, match="together") as caught:
        mp.allocate(
            make_profile(np.zeros((1, 3))),
            make_costs(memory, latency),
            {"weight_memory": "1.5 B", "latency": "1.5 s"},
        )
    assert "least within the others is 3 B" in str(caught.value)


def test_clamping_is_recorded_and_keeping_is_the_default() -> None:
    memory = np.array([[2.0, 4.0, 8.0]])
    profile = make_profile(np.array([[0.1, 0.5, 0.2]]))
    kept = mp.allocate(profile, make_costs(memory), {"weight_memory": "8 B"})
    clamped = mp.allocate(profile, make_costs(memory), {"weight_memory": "8 B"}, monotone="clamp")
    assert (kept.monotone, kept.layers) == ("keep", {"g0": "w2a8"})
    assert clamped.monotone == "clamp"
    # Clamped losses are 0.5, 0.5, 0.2: the dearest now wins, and its own loss is reported.
    assert clamped.layers == {"g0": "w8a8"}
    assert clamped.predicted_loss == pytest.approx(0.2)


def test_options_a_group_is_not_offered_are_never_chosen() -> None:
    memory = np.array([[2.0, 4.0, 8.0], [2.0, 4.0, 8.0]])
    allowed = np.array([[True, True, True], [False, True, True]])
    profile = make_profile(np.array([[0.0, 1.0, 1.0], [np.nan, 1.0, 2.0]]), allowed=allowed)
    answer = mp.allocate(profile, make_costs(memory), {"weight_memory": "100%"})
    assert answer.layers == {"g0": "w2a8", "g1": "w4a8"}


@pytest.mark.parametrize(
    ("groups", "options", "words"),
    [
        (["g0", "other"], OPTIONS, "different groups"),
        (["g1", "g0"], OPTIONS, "order differs"),
        (["g0", "g1"], ["w2a8", "w4a8", "w6a8"], "different options"),
    ],
)
def test_profile_and_costs_of_different_problems_are_refused(
    groups: list[str], options: list[str], words: str
) -> None:
    profile = mp.Profile.from_arrays(np.zeros((2, 3)), groups=groups, options=options)
    with pytest.raises(MismatchError, match=words):
        mp.allocate(profile, make_costs(np.ones((2, 3))), {"weight_memory": "1x"})


def test_the_frontier_is_pareto_optimal_and_contains_the_extremes() -> None:
    generator = np.random.default_rng(0)
    memory = np.sort(generator.lognormal(0, 1, (6, 3)), axis=1)
    loss = np.sort(generator.lognormal(-3, 1, (6, 3)), axis=1)[:, ::-1]
    curve = mp.frontier(make_profile(loss), make_costs(memory))
    usages = [point.usage for point in curve.points]
    losses = [point.predicted_loss for point in curve.points]
    assert usages == sorted(usages)
    assert losses == sorted(losses, reverse=True)
    assert usages[0] == pytest.approx(memory[:, 0].sum())
    assert losses[-1] == pytest.approx(loss[:, 2].sum())
    for point in curve.points:
        expected = best_by_enumeration(loss, [(memory, point.usage)])
        assert point.predicted_loss == pytest.approx(expected, rel=1e-9)
    assert curve.uniform["w4a8"].usage == pytest.approx(memory[:, 1].sum())


def test_a_frontier_of_an_unpriced_resource_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="weight_memory"):
        mp.frontier(make_profile(np.zeros((1, 3))), make_costs(np.ones((1, 3))), "latency")


def test_saved_documents_give_the_same_answer(tmp_path) -> None:
    generator = np.random.default_rng(1)
    profile = make_profile(generator.normal(size=(4, 3)))
    costs = make_costs(generator.lognormal(size=(4, 3)))
    direct = mp.allocate(profile, costs, {"weight_memory": "50%"})
    paths = profile.save(tmp_path / "p.json"), costs.save(tmp_path / "c.json")
    loaded = mp.allocate(*paths, {"weight_memory": "50%"})
    assert loaded.layers == direct.layers
    assert loaded.objective == direct.objective


def test_a_missing_file_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(DocumentError, match="cannot read"):
        mp.allocate(tmp_path / "none.json", tmp_path / "none.json", {"weight_memory": "50%"})


@pytest.mark.parametrize(
    "budget",
    [
        {"weight_memory": None},
        {"weight_memory": True},
        ["weight_memory=0.2x"],
        {"weight_memory": []},
    ],
)
def test_budgets_of_the_wrong_type_are_refused(budget: object) -> None:
    with pytest.raises(BudgetError):
        mp.allocate(make_profile(np.zeros((1, 3))), make_costs(np.ones((1, 3))), budget)


def test_an_unknown_monotone_is_refused_before_solving() -> None:
    profile, costs = make_profile(np.zeros((1, 3))), make_costs(np.ones((1, 3)))
    with pytest.raises(UnknownNameError, match="clamp"):
        mp.allocate(profile, costs, {"weight_memory": "1 B"}, monotone="clmap")


def test_a_frontier_within_other_budgets_shows_only_uniforms_that_keep_them() -> None:
    memory = np.tile([1.0, 2.0, 4.0], (2, 1))
    latency = np.tile([1.0, 2.0, 4.0], (2, 1))
    profile = make_profile(np.tile([2.0, 1.0, 0.0], (2, 1)))
    curve = mp.frontier(profile, make_costs(memory, latency), budget={"latency": "5 s"})
    assert set(curve.uniform) == {"w2a8", "w4a8"}
    assert all(point.usage <= 5 for point in curve.points)


def test_costs_of_peaks_alone_are_accepted_and_clamping_them_is_refused() -> None:
    step = PeakStep(name="conv", cost={"g0": [1.0, 2.0, 4.0]})
    costs = mp.Costs(groups=["g0"], options=OPTIONS, peaks={"peak": [step]}, units={"peak": "B"})
    profile = make_profile(np.array([[2.0, 1.0, 0.0]]))
    answer = mp.allocate(profile, costs, {"peak": "3 B"})
    assert answer.layers == {"g0": "w4a8"}
    with pytest.raises(InputError, match="no resource adds up"):
        mp.allocate(profile, costs, {"peak": "3 B"}, monotone="clamp")
    with pytest.raises(ValueError, match="no resource is priced"):
        mp.Costs(groups=["g0"], options=OPTIONS, units={})
