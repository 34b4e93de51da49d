"""Allocations whose cost has pairs of neighbours: bounds, and brute force on small problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import mpsearch as mp
from mpsearch.conversions import bounded_by_sums, without_conversions
from mpsearch.errors import InfeasibleError, UnsolvedError
from mpsearch.schemas import Conversion, Costs, Profile

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


@settings(deadline=None, max_examples=30)  # each example solves several problems
@given(instances(), st.floats(0.05, 1.0))
def test_answers_keep_the_budget_with_the_pairs_and_their_bound_holds(both, share) -> None:
    profile, costs = both
    uses = [costs.usage("latency", c) for c in _all(len(costs.groups))]
    limit = min(uses) + share * (max(uses) - min(uses))
    best = min(
        profile.predicted(c.tolist())
        for c in _all(len(costs.groups))
        if costs.usage("latency", c) <= limit
    )
    try:
        answer = mp.allocate(profile, costs, {"latency": limit})
    except UnsolvedError:
        return  # says that it found none, and that none is proven impossible
    assert answer.budgets["latency"].usage <= limit * (1 + 1e-12)
    columns = np.array([OPTIONS.index(answer.groups[g]) for g in costs.groups])
    assert answer.budgets["latency"].usage == pytest.approx(costs.usage("latency", columns))
    assert answer.predicted_loss >= best - 1e-9
    assert answer.bound is None or answer.bound <= best + 1e-9
    if answer.status == "optimal":
        assert answer.predicted_loss == pytest.approx(best, abs=1e-5)


def test_one_layer_alone_is_not_worth_two_conversions() -> None:
    """Without pairs the middle layer would be float: it costs little more and loses nothing."""
    names = ["a", "b", "c"]
    pairs = [
        Conversion(groups=pair, first=[x], second=[y], cost=5.0)
        for pair in (("a", "b"), ("b", "c"))
        for x, y in (OPTIONS, OPTIONS[::-1])
    ]
    costs = Costs(
        groups=names,
        options=OPTIONS,
        values={"latency": np.array([[9.0, 3.0]] * 3)},
        units={"latency": "s"},
        conversions={"latency": pairs},
        tolerance={"latency": 0.04},
    )
    profile = Profile.from_arrays([[0, 1], [0, 3], [0, 1]], groups=names, options=OPTIONS)
    plain = mp.allocate(profile, without_conversions(costs), {"latency": 20.0})
    assert plain.groups == {"a": "w8a8", "b": "float", "c": "w8a8"}
    paired = mp.allocate(profile, costs, {"latency": 20.0})
    assert set(paired.groups.values()) == {"w8a8", "float"} or set(paired.groups.values()) == {
        "w8a8"
    }
    assert paired.groups["b"] == "w8a8" or paired.groups["a"] == "float"
    assert paired.budgets["latency"].usage <= 20
    assert paired.budgets["latency"].tolerance == 0.04
    assert paired.bound == pytest.approx(plain.predicted_loss)
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
