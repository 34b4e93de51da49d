"""Allocations whose cost has pairs of neighbours: bounds, and brute force on small problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import mpsearch as mp
from mpsearch.conversion_frontier import _spread
from mpsearch.conversions import bounded_by_sums, without_conversions
from mpsearch.errors import InfeasibleError, UnsolvedError
from mpsearch.schemas import Conversion, Costs, PeakStep, Profile

OPTIONS = ["float", "w8a8"]


@st.composite
def instances(draw) -> tuple[Profile, Costs]:
    count = draw(st.integers(2, 6))
    numbers = st.integers(0, 20)
    table = [[draw(numbers) + 1.0, draw(numbers) + 1.0] for _ in range(count)]
    loss = [[0.0, draw(numbers) / 7] for _ in range(count)]
    names = [f"g{i}" for i in range(count)]
    pairs = [
        Conversion(groups=(names[i], names[j]), first=[a], second=[b], cost=float(draw(numbers)))
        for i in range(count)
        for j in range(i + 1, count)
        for a, b in (OPTIONS, OPTIONS[::-1])
        if draw(st.booleans())
    ]
    costs = Costs(
        groups=names,
        options=OPTIONS,
        values={"latency": np.array(table)},
        units={"latency": "s"},
        conversions={"latency": pairs} if pairs else {},
    )
    return Profile.from_arrays(loss, groups=names, options=OPTIONS), costs


def _all(count: int):
    return (np.array(c) for c in itertools.product(range(2), repeat=count))


@given(instances(), st.integers(0, 63))
def test_the_sums_are_never_below_the_pairs_and_meet_them_at_the_allocation(both, number) -> None:
    _, costs = both
    choices = list(_all(len(costs.groups)))
    around = choices[number % len(choices)]
    sums = bounded_by_sums(costs, around)
    for choice in choices:
        assert sums.usage("latency", choice) >= costs.usage("latency", choice) - 1e-9
    assert sums.usage("latency", around) == pytest.approx(costs.usage("latency", around))


def _best(profile: Profile, costs: Costs, limit: float) -> float:
    return min(
        profile.predicted(c.tolist())
        for c in _all(len(costs.groups))
        if costs.usage("latency", c) <= limit
    )


def _limit(costs: Costs, share: float) -> float:
    uses = [costs.usage("latency", c) for c in _all(len(costs.groups))]
    return min(uses) + share * (max(uses) - min(uses))


@settings(deadline=None, max_examples=30)  # each example solves several problems
@given(instances(), st.floats(0.0, 1.0))
def test_answers_with_conversions_are_the_best_there_are_and_proven_so(both, share) -> None:
    profile, costs = both
    limit = _limit(costs, share)
    answer = mp.allocate(profile, costs, {"latency": limit})
    assert answer.status == "optimal"
    assert answer.predicted_loss == pytest.approx(_best(profile, costs, limit), abs=1e-5)
    columns = np.array([OPTIONS.index(answer.groups[g]) for g in costs.groups])
    assert answer.budgets["latency"].usage == costs.usage("latency", columns) <= limit
    assert set(answer.costs) == {"latency"}


@settings(deadline=None, max_examples=20)
@given(instances(), st.floats(0.05, 1.0))
def test_other_methods_keep_the_budget_with_the_pairs_and_their_bound_holds(both, share) -> None:
    profile, costs = both
    limit = _limit(costs, share)
    best = _best(profile, costs, limit)
    try:
        answer = mp.allocate(profile, costs, {"latency": limit}, method="decomposition")
    except UnsolvedError:
        return  # says that it found none, and that none is proven impossible
    assert answer.budgets["latency"].usage <= limit * (1 + 1e-12)
    assert answer.predicted_loss >= best - 1e-9
    assert answer.bound is None or answer.bound <= best + 1e-9
    if answer.status == "optimal":
        assert answer.predicted_loss == pytest.approx(best, abs=1e-5)


@settings(deadline=None, max_examples=15)
@given(instances())
def test_frontiers_count_conversions_in_use_and_in_what_they_prove(both) -> None:
    profile, costs = both
    curve = mp.frontier(profile, costs, resource="latency", points=4)
    uses = [costs.usage("latency", c) for c in _all(len(costs.groups))]
    assert curve.points[0].usage == pytest.approx(min(uses))
    for point in curve.points:
        columns = np.array([OPTIONS.index(point.groups[g]) for g in costs.groups])
        assert point.usage == costs.usage("latency", columns)
        assert point.status == "optimal"
        assert point.predicted_loss == pytest.approx(_best(profile, costs, point.usage), abs=1e-5)
    for option, point in curve.uniform.items():
        same = np.full(len(costs.groups), OPTIONS.index(option))
        assert point.usage == costs.usage("latency", same)


def test_budgets_that_only_conversions_break_are_proven_impossible_with_the_least_use() -> None:
    """Without conversions 6 is possible; with them the cheapest is 9, everything at w8a8."""
    costs, profile = _chain([[2.0, 3.0], [9.0, 3.0], [2.0, 3.0]])
    with pytest.raises(InfeasibleError, match=r"least within the others is 9 s"):
        mp.allocate(profile, costs, {"latency": 8.0})


def test_losses_that_interact_are_solved_with_sums_and_never_called_proven_wrongly() -> None:
    costs, profile = _chain([[9.0, 3.0]] * 3)
    table = np.zeros((6, 6))
    table[0, 3] = table[3, 0] = 0.5  # first float, second w8a8
    profile = profile.model_copy(update={"interactions": table})
    limit = 20.0
    answer = mp.allocate(profile, costs, {"latency": limit})
    best = _best(profile, costs, limit)
    assert answer.budgets["latency"].usage <= limit
    assert answer.predicted_loss >= best - 1e-9
    assert answer.bound is not None
    assert answer.bound <= best + 1e-9
    for point in mp.frontier(profile, costs, resource="latency").points:
        columns = np.array([OPTIONS.index(point.groups[g]) for g in costs.groups])
        assert point.usage == costs.usage("latency", columns)
        assert (point.status, point.bound) == ("feasible", None)


def test_conversions_of_two_resources_and_a_peak_are_limited_together() -> None:
    costs, profile = _chain([[9.0, 3.0]] * 3)
    step = PeakStep(name="s", base=1.0, cost={"a": [4.0, 1.0], "b": [4.0, 1.0]})
    costs = costs.model_copy(
        update={
            "values": costs.values | {"energy": costs.values["latency"] * 2},
            "units": costs.units | {"energy": "J", "activation_memory": "B"},
            "conversions": costs.conversions | {"energy": costs.conversions["latency"]},
            "peaks": {"activation_memory": [step]},
        }
    )
    budgets = {"latency": 20.0, "energy": 40.0, "activation_memory": 6.0}
    answer = mp.allocate(profile, costs, budgets)
    best = min(
        profile.predicted(c.tolist())
        for c in _all(3)
        if all(costs.usage(name, c) <= limit for name, limit in budgets.items())
    )
    assert answer.status == "optimal"
    assert answer.predicted_loss == pytest.approx(best)
    assert answer.budgets["activation_memory"].binding_step == "s"
    assert set(answer.costs) == set(budgets)


def _chain(latency) -> tuple[Costs, Profile]:
    """Three layers in a row, 5 for every change between them."""
    names = ["a", "b", "c"]
    pairs = [
        Conversion(groups=pair, first=[x], second=[y], cost=5.0)
        for pair in (("a", "b"), ("b", "c"))
        for x, y in (OPTIONS, OPTIONS[::-1])
    ]
    costs = Costs(
        groups=names,
        options=OPTIONS,
        values={"latency": np.array(latency)},
        units={"latency": "s"},
        conversions={"latency": pairs},
        tolerance={"latency": 0.04},
    )
    return costs, Profile.from_arrays([[0, 1], [0, 3], [0, 1]], groups=names, options=OPTIONS)


def test_one_layer_alone_is_not_worth_two_conversions() -> None:
    """Without pairs the middle layer would be float: it costs little more and loses nothing."""
    costs, profile = _chain([[9.0, 3.0]] * 3)
    plain = mp.allocate(profile, without_conversions(costs), {"latency": 20.0})
    assert plain.groups == {"a": "w8a8", "b": "float", "c": "w8a8"}
    paired = mp.allocate(profile, costs, {"latency": 20.0})
    assert paired.groups["b"] == "w8a8"
    assert paired.predicted_loss == 4.0
    assert paired.budgets["latency"].usage <= 20
    assert paired.budgets["latency"].tolerance == 0.04
    assert plain.predicted_loss < paired.predicted_loss
    with pytest.raises(InfeasibleError):
        mp.allocate(profile, costs, {"latency": 8.0})
    curve = mp.frontier(profile, costs, resource="latency")
    assert curve.points[0].usage == pytest.approx(9.0)


def test_pairs_of_unknown_groups_are_refused() -> None:
    pair = Conversion(groups=("a", "z"), first=["float"], second=["w8a8"], cost=1.0)
    with pytest.raises(ValidationError, match="z"):
        Costs(
            groups=["a"],
            options=OPTIONS,
            values={"latency": np.ones((1, 2))},
            units={"latency": "s"},
            conversions={"latency": [pair]},
        )


@given(st.integers(1, 40), st.data())
def test_points_of_a_frontier_are_solved_in_an_order_that_stays_even(count, data) -> None:
    order = _spread(count)
    assert sorted(order) == list(range(count))
    assert order[0] == 0
    done = sorted(order[: data.draw(st.integers(1, count))])
    gaps = np.diff([*done, count])
    assert gaps.max() <= 2 * max(count / len(done), 1)
