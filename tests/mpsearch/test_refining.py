from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mpsearch as mp
from mpsearch.engine.quantizer import Quantizer
from mpsearch.errors import InputError
from mpsearch.formats import parse_option
from mpsearch.losses import as_loss
from mpsearch.models.dataset import DataSet
from mpsearch.models.digits import digits, digits_resnet
from mpsearch.refining import PartLosses, perturbed, proposals_wanted, refine
from mpsearch.schemas import Conversion

MENU = ["w2", "w3", "w4", "w8"]


def refined(losses, proposals=None, **keywords):
    """Refine among rows of a table of losses, from the first; proposals in the order given."""
    order = iter(range(1, len(losses)) if proposals is None else proposals)
    measured = []

    def measure(row):
        measured.append(row)
        return np.asarray(losses[row], dtype=np.float64)

    found = refine(
        0,
        lambda *_: next(order),
        measure,
        lambda row: row,
        proposals=len(losses) - 1 if proposals is None else len(proposals),
        seed=0,
        **keywords,
    )
    return found, measured


def test_the_least_of_the_measurably_better_is_taken():
    # Row 1 is better everywhere, row 2 still better, row 3 least of all but by a single part.
    found, _ = refined([[4, 4, 4, 4], [3.1, 3, 3, 2.9], [2, 2.1, 1.9, 2], [6, 6, 6, -14]])
    assert (found.chosen, found.before, found.after) == (2, 4.0, 2.0)
    # paired differences -2, -1.9, -2.1, -2: their deviation over the root of four
    assert found.error == pytest.approx(np.std([2, 1.9, 2.1, 2], ddof=1) / 2)


def test_luck_with_one_part_is_no_reason_to_leave_the_predicted_best():
    found, _ = refined([[4, 4, 4, 4], [6, 6, 6, -14]])
    assert (found.chosen, found.after, found.error, found.measured) == (0, 4.0, None, 2)


def test_each_allocation_is_measured_once_and_failed_proposals_are_passed_over():
    steps = []
    found, measured = refined(
        [[3, 3], [2, 2.1], [1, 1.1]], [1, 1, None, 0, 2, 1], on_step=steps.append
    )
    assert measured == [0, 1, 2]
    assert (found.chosen, found.measured, steps) == (2, 3, [1, 2, 3, 4, 5, 6])


def test_perturbations_widen_until_something_new_is_proposed():
    spreads, order = [], iter([0, 0, 0, 1, 1, *[0] * 20])

    def propose(_, spread):
        spreads.append(spread)
        return next(order)

    refine(0, propose, lambda row: np.ones(2), lambda row: row, proposals=25, seed=0)
    assert spreads[:6] == pytest.approx([0.3, 0.33, 0.363, 0.3993, 0.3, 0.33])
    assert spreads[-1] == 1.0


def test_proposals_that_diverge_are_not_taken():
    found, _ = refined([[3, 3], [float("nan"), 1], [float("inf"), 1], [2, 2.1]])
    assert found.chosen == 3


def test_where_the_predicted_best_diverges_any_finite_proposal_is_better():
    nan, inf = float("nan"), float("inf")
    found, _ = refined([[nan, 1], [inf, 1], [2, 30], [2, 2], [3, 3]])
    assert (found.chosen, found.before, found.after, found.error) == (3, None, 2.0, None)
    found, _ = refined([[nan, 1], [inf, 1]])
    assert (found.chosen, found.before, found.after) == (0, None, None)


@given(
    losses=st.lists(
        st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), min_size=1, max_size=8
    )
)
def test_the_choice_is_never_worse_and_better_by_more_than_its_error(losses):
    found, _ = refined(losses)
    assert found.after <= found.before
    if found.chosen != 0:
        assert found.before - found.after > found.error
    for row in losses[1:]:
        difference = np.asarray(row) - np.asarray(losses[0])
        better = -difference.mean() > difference.std(ddof=1) / 2
        assert not better or found.after <= np.mean(row) + 1e-12


@given(seed=st.integers(0, 2**32 - 1))
def test_perturbed_pairs_stay_symmetric_and_scores_keep_their_signs(seed):
    generator = np.random.default_rng(seed)
    loss = generator.normal(size=(3, 2))
    root = generator.normal(size=(6, 6))
    found, pairs = perturbed(loss, root @ root.T, np.random.default_rng(seed))
    again, _ = perturbed(loss, None, np.random.default_rng(seed))
    assert np.array_equal(found, again)
    assert np.array_equal(np.sign(found), np.sign(loss))
    assert not np.array_equal(found, loss)
    assert np.array_equal(pairs, pairs.T)
    assert np.linalg.eigvalsh(pairs).min() > -1e-9  # scaling both sides keeps it semidefinite


@pytest.mark.parametrize("count", [7, 20, 41, 64])
def test_parts_add_up_to_the_loss_of_all_inputs(count):
    torch.manual_seed(count)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs, targets = torch.randn(count, 6), torch.randint(0, 3, (count,))
    targets[1::3] = -100  # ignored, so that parts differ in their terms
    measure = PartLosses(
        Quantizer(net, {}), DataSet("d", inputs, targets, batch_size=32), as_loss("cross_entropy")
    )
    shares = measure({"0": parse_option("w2")})
    with torch.no_grad():
        output = mp.apply(net, {"0": "w2"})(inputs).double()
    assert len(shares) == measure.parts <= 20
    assert shares.mean() == pytest.approx(
        float(nn.functional.cross_entropy(output, targets)), rel=1e-6
    )


def test_poor_scores_lead_to_a_better_allocation_within_the_same_budgets():
    model, data = digits_resnet(), digits()
    asked = {"options": MENU, "budget": {"average_bits": 3.0, "bops": "60%"}}
    plain = mp.search(model, data, estimator="kurtosis", **asked)
    found = mp.search(model, data, estimator="kurtosis", refine=32, **asked)
    record = found.refinement
    assert plain.refinement is None
    assert 1 < record.measured <= 33
    assert record.loss_before - record.loss_after > record.standard_error > 0
    # Measured anew on the calibration data, which had no part in the verification.
    for layers, loss in ((plain, record.loss_before), (found, record.loss_after)):
        with torch.no_grad():
            output = mp.apply(model, layers)(data.inputs).double()
        assert float(nn.functional.cross_entropy(output, data.targets)) == pytest.approx(
            loss, rel=1e-6
        )
    assert found.verification.allocation.loss < plain.verification.allocation.loss
    # The certificate is that of the predicted loss.
    profile, costs = found.origin
    columns = [MENU.index(found.groups[group]) for group in profile.groups]
    assert found.status == "feasible"
    assert found.predicted_loss == found.objective == profile.predicted(columns)
    assert found.bound == plain.bound
    assert found.gap == pytest.approx((found.objective - found.bound) / found.objective)
    for resource, use in found.budgets.items():
        assert use.usage == costs.usage(resource, np.array(columns)) <= use.limit
        before = plain.budgets[resource]
        assert (use.limit, use.least) == (before.limit, before.least)
    assert not any("no independent estimate" in text for text in found.warnings)


def test_with_pairs_proposals_come_from_a_local_search_and_repeat():
    data = digits()
    data = DataSet("d", data.inputs[:64], data.targets[:64], batch_size=64)
    asked = {"estimator": "pairwise", "refine": 6, "seed": 5}
    first, second = (
        mp.search("digits-resnet", data, MENU, {"average_bits": 2.5}, **asked) for _ in range(2)
    )
    assert first.layers == second.layers
    assert first.refinement == second.refinement
    assert first.refinement.measured > 1


def test_what_was_chosen_on_the_data_it_is_verified_on_says_so():
    data = digits()
    data = DataSet("d", data.inputs[:100], data.targets[:100])
    found = mp.search(
        "digits-resnet", data, MENU, {"average_bits": 3}, estimator="orthogonality", refine=8
    )
    assert found.refinement.loss_after < found.refinement.loss_before
    assert found.verification.allocation.loss == pytest.approx(found.refinement.loss_after)
    assert any("no independent estimate" in text for text in found.warnings)


def test_few_inputs_show_no_error_and_are_not_refined_on():
    data = digits()
    data = DataSet("d", data.inputs[:4], data.targets[:4])
    found = mp.search(
        "digits-resnet", data, MENU, {"average_bits": 3}, estimator="kurtosis", refine=4
    )
    assert found.refinement is None
    assert any("4 calibration inputs are too few" in text for text in found.warnings)


class Touchy(nn.Module):
    """Its output is not finite where the first layer has no more than two bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        broken = self.first.weight.unique().numel() <= 3 * 8  # codes -1, 0, 1 of every channel
        return self.second(self.first(inputs)) * (float("inf") if broken else 1.0)


@pytest.mark.parametrize(("menu", "rescued"), [(["w2", "w4", "w8"], True), (["w2"], False)])
def test_an_allocation_that_diverges_is_exchanged_for_one_that_does_not(menu, rescued):
    torch.manual_seed(0)
    net, inputs = Touchy().eval(), torch.randn(40, 6)
    profile = mp.Profile.from_arrays(
        [[0.01, 0.011, 0.012][: len(menu)], [1.0, 0.01, 0.0][: len(menu)]],
        groups=["first", "second"],
        options=menu,
    )
    asked = {
        "budget": {"average_bits": 12},
        "known_profile": profile,
        "loss": "mse",
        "refine": 40,
        "verified": False,
    }
    found = mp.search(net, (inputs, torch.zeros(40, 3)), menu, **asked)
    if rescued:
        assert found.layers["first"] != "w2"
        assert found.refinement.loss_before is None
        assert found.refinement.standard_error is None
        assert not any("no independent estimate" in text for text in found.warnings)
    else:
        assert found.refinement is None
        assert any("not finite" in text for text in found.warnings)


@pytest.mark.parametrize("case", ["clamp", "conversions", "groups and fixed", "float"])
def test_budgets_and_wishes_hold_in_refined_answers(case):
    from mpsearch.menu import Wishes

    data = digits()
    data = DataSet("d", data.inputs[:200], data.targets[:200])
    menu = [*MENU, "float"] if case == "float" else MENU
    asked = {"estimator": "orthogonality", "refine": 8, "verified": False}
    budget = {"average_bits": 3.5}
    if case == "clamp":
        asked["monotone"] = "clamp"
    if case == "groups and fixed":
        asked["wishes"] = Wishes(group=["layer1.*"], fix={"fc": "w8"})
    if case == "conversions":
        costs = mp.price("digits-resnet", data, menu)
        pairs = [
            Conversion(
                groups=(costs.groups[0], costs.groups[1]),
                first=[option],
                second=[other for other in menu if other != option],
                cost=500.0,
            )
            for option in menu
        ]
        asked["known_costs"] = costs.model_copy(update={"conversions": {"weight_memory": pairs}})
        budget = {"weight_memory": "0.11x"}
    found = mp.search("digits-resnet", data, menu, budget, **asked)
    assert found.refinement.loss_after < found.refinement.loss_before
    profile, costs = found.origin
    columns = np.array([menu.index(found.groups[group]) for group in profile.groups])
    ((resource, use),) = found.budgets.items()
    assert use.usage == pytest.approx(costs.usage(resource, columns))
    assert use.usage <= use.limit
    assert found.predicted_loss == profile.predicted(columns.tolist())
    if case == "clamp":
        assert (found.bound, found.gap) == (None, None)
    else:
        assert found.bound <= found.objective
    if case == "groups and fixed":
        assert found.layers["fc"] == "w8"
        assert found.layers["layer1.0.conv1"] == found.layers["layer1.0.conv2"]


def test_scores_of_auto_are_refined_wherever_they_come_from():
    data = digits()
    data = DataSet("d", data.inputs[:60], data.targets[:60])
    profile = mp.profile("digits-resnet", data, MENU, "variance")
    asked = {"budget": {"average_bits": 3}, "verified": False}
    of_auto = profile.model_copy(update={"estimator": "auto"})
    found = mp.search("digits-resnet", data, MENU, known_profile=of_auto, **asked)
    assert found.refinement.proposals == 32
    found = mp.search("digits-resnet", data, MENU, known_profile=profile, estimator="auto", **asked)
    assert found.refinement is None


def test_only_auto_refines_unasked():
    assert proposals_wanted(None, "auto") == 32
    assert proposals_wanted(None, "pairwise") == 0
    assert proposals_wanted(0, "auto") == 0
    with pytest.raises(InputError, match="refine=-1"):
        proposals_wanted(-1, "auto")


def test_a_goal_and_a_refinement_do_not_go_together():
    from mpsearch.smallest import Goal

    with pytest.raises(InputError, match="one of them"):
        mp.search(
            "digits-resnet",
            "digits",
            MENU,
            {},
            estimator="kurtosis",
            goal=Goal("weight_memory", 0.01),
            refine=4,
        )


def test_what_is_minimised_takes_no_budget_and_nothing_is_scored_before_that_is_said():
    from mpsearch.smallest import Goal

    told = []
    with pytest.raises(InputError, match="weight_memory is minimised"):
        mp.search(
            "digits-resnet",
            "digits",
            MENU,
            {"weight_memory": "0.12x"},
            goal=Goal("weight_memory", 0.01),
            on_progress=told.append,
        )
    assert not told
