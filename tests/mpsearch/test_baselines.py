from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.baselines import RANDOM_DRAWS, Rules
from mpsearch.schemas import Costs, Profile


def make_rules(memory: np.ndarray, limit: float, allowed: np.ndarray | None = None) -> Rules:
    names = [f"o{i}" for i in range(memory.shape[1])]
    profile = Profile.from_arrays(np.zeros(memory.shape), options=names, allowed=allowed)
    costs = Costs(
        groups=profile.groups,
        options=names,
        values={"weight_memory": memory},
        units={"weight_memory": "B"},
    )
    return Rules(profile, costs, {"weight_memory": limit})


STEPS = np.tile([1.0, 2.0, 4.0], (5, 1))


def test_uniform_offers_every_option_that_fits() -> None:
    candidates = make_rules(STEPS, 10.0).uniform().candidates
    assert [candidate.tolist() for candidate in candidates] == [[0] * 5, [1] * 5]


def test_uniform_leaves_out_options_that_a_group_is_not_offered() -> None:
    allowed = np.ones((5, 3), bool)
    allowed[2, 0] = False
    candidates = make_rules(STEPS, 10.0, allowed).uniform().candidates
    assert [candidate.tolist() for candidate in candidates] == [[1] * 5]


def test_head_high_raises_as_many_first_groups_as_fit() -> None:
    (candidate,) = make_rules(STEPS, 13.9).head_high().candidates
    assert candidate.tolist() == [2, 2, 0, 0, 0]


def test_tail_high_raises_as_many_last_groups_as_fit() -> None:
    (candidate,) = make_rules(STEPS, 14.0).tail_high().candidates
    assert candidate.tolist() == [0, 0, 2, 2, 2]


def test_no_rule_has_an_allocation_below_the_least_possible() -> None:
    assert all(not rule.candidates for rule in make_rules(STEPS, 4.9).all(0))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_random_allocations_fit_are_offered_and_repeat_with_the_seed(
    seed: int, fraction: float
) -> None:
    generator = np.random.default_rng(seed)
    memory = generator.lognormal(0, 1, (6, 4))
    least, most = memory.min(axis=1).sum(), memory.max(axis=1).sum()
    limit = least * (1 + 1e-9) + fraction * (most - least)
    rules = make_rules(memory, limit)
    drawn = rules.random(seed).candidates
    assert len(drawn) == RANDOM_DRAWS
    for candidate in drawn:
        assert math.fsum(memory[np.arange(6), candidate]) <= limit
    again = rules.random(seed).candidates
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_random_allocations_use_a_loose_budget() -> None:
    drawn = make_rules(STEPS, 1000.0).random(0).candidates
    assert np.mean([candidate.mean() for candidate in drawn]) == pytest.approx(1.0, abs=0.25)
