from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import InfeasibleError
from mpsearch.formats import get, parse_option
from mpsearch.hardware.peak import stored_bits
from mpsearch.hardware.schedule import record_schedule
from mpsearch.menu import Wishes

MENU = ["w4a4", "w4a8", "float"]


class Branched(nn.Module):
    """Two branches of unlike size, a sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.left(x)
        x = torch.cat([x, torch.relu_(self.right(x))], 1)
        return self.head(x).flatten(1)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 1, 6, 6)


def peak_by_hand(schedule, bits_of: dict[str, float]) -> float:
    """Sum what is live at every step, each tensor in the bits of its producer."""
    return max(
        sum(
            t.values * bits_of[t.producer] / 8 if t.producer in bits_of else t.size
            for t in schedule.live(step)
        )
        for step in range(len(schedule.steps))
    )


def test_rows_give_the_peak_of_every_allocation(images) -> None:
    model = Branched()
    costs = mp.price(model, images, MENU)
    schedule = record_schedule(model, images[:1].clone())
    bits = [4.0, 8.0, 32.0]
    for columns in itertools.product(range(3), repeat=4):
        expected = peak_by_hand(
            schedule, {g: bits[c] for g, c in zip(costs.groups, columns, strict=True)}
        )
        assert costs.usage("activation_memory", np.array(columns)) == expected
    assert costs.baseline["activation_memory"] == schedule.peak()
    assert costs.units["activation_memory"] == "B"


def test_a_budget_on_the_peak_is_solved_exactly_and_names_its_step(images) -> None:
    model = Branched()
    costs = mp.price(model, images, MENU)
    rng = np.random.default_rng(1)
    # Finer activations lose less, by unlike amounts.
    loss = np.sort(rng.lognormal(size=(4, 3)), axis=1)[:, ::-1]
    profile = mp.Profile.from_arrays(loss, groups=costs.groups, options=MENU)
    every = list(itertools.product(range(3), repeat=4))
    peaks = {c: costs.usage("activation_memory", np.array(c)) for c in every}
    for limit in sorted(set(peaks.values()))[::6]:
        best = min(sum(loss[range(4), c]) for c in every if peaks[c] <= limit)
        answer = mp.allocate(profile, costs, {"activation_memory": limit}, gap=0)
        assert answer.status == "optimal"
        assert answer.predicted_loss == pytest.approx(best)
        use = answer.budgets["activation_memory"]
        assert use.usage <= limit
        assert use.binding_step in {step.name for step in costs.peaks["activation_memory"]}
        assert use.least == min(peaks.values())


def test_amounts_of_a_peak_read_as_those_of_a_sum(images) -> None:
    costs = mp.price(Branched(), images, ["w4a4", "w4a8"])
    profile = mp.Profile.from_arrays(
        np.array([[1.0, 0.0]] * 4), groups=costs.groups, options=["w4a4", "w4a8"]
    )
    answer = mp.allocate(profile, costs, {"activation_memory": "0.2x"})
    assert answer.budgets["activation_memory"].limit == 0.2 * costs.baseline["activation_memory"]
    half = mp.allocate(profile, costs, {"activation_memory": "50%"}).budgets["activation_memory"]
    least, most = (costs.usage("activation_memory", np.full(4, c)) for c in (0, 1))
    assert half.limit == pytest.approx((least + most) / 2)
    with pytest.raises(InfeasibleError, match="all groups at w4a4"):
        mp.allocate(profile, costs, {"activation_memory": "0.01x"})


def test_frontiers_and_equal_budget_baselines_hold_the_peak(images) -> None:
    costs = mp.price(Branched(), images, MENU)
    loss = np.array([[3.0, 1.0, 0.0]] * 4)
    profile = mp.Profile.from_arrays(loss, groups=costs.groups, options=MENU)
    curve = mp.frontier(profile, costs, "activation_memory")
    usages = [point.usage for point in curve.points]
    assert usages == sorted(usages)
    assert curve.points[-1].predicted_loss == 0.0
    for point in curve.points:
        columns = np.array([MENU.index(point.groups[g]) for g in costs.groups])
        assert costs.usage("activation_memory", columns) == point.usage

    from mpsearch.baselines import Rules

    limit = usages[len(usages) // 2]
    for rule in Rules(profile, costs, {"activation_memory": limit}).all(seed=0):
        for columns in rule.candidates:
            assert costs.usage("activation_memory", columns) <= limit


def test_skipped_layers_and_the_input_keep_the_bits_they_have(images) -> None:
    costs = mp.price(Branched(), images, MENU, wishes=Wishes(skip=["left", "right", "head"]))
    schedule = record_schedule(Branched(), images[:1].clone())
    assert costs.usage("activation_memory", np.array([0])) == peak_by_hand(schedule, {"stem": 4.0})


def test_a_batch_is_counted_as_it_runs(images) -> None:
    one, four = (mp.price(Branched(), images, MENU, batch=batch) for batch in (1, 4))
    columns = np.zeros(4, dtype=int)
    assert four.usage("activation_memory", columns) == 4 * one.usage("activation_memory", columns)


def test_block_scales_of_activations_are_stored_and_fixed_scales_are_not() -> None:
    assert stored_bits(get("mxfp4")) == 4.25
    assert stored_bits(parse_option("w4a8").activation) == 8
    assert stored_bits(get("float")) is None
