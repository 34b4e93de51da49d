from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.formats import get


def deviation(exact, layer, name):
    weight = exact.weight(layer)
    return (get(name).fake_quantize(weight) - weight).flatten()


def test_both_terms_equal_brute_force_for_weights(net, exact, data):
    found = mp.profile(net, data, ["w3", "w5"], "taylor2", draws="exact", first_order="signed")
    for row, layer in enumerate(found.groups):
        for column, name in enumerate(("int3", "int5")):
            moved = deviation(exact, layer, name)
            first = exact.gradient(layer).flatten() @ moved
            second = 0.5 * moved @ exact.ggn(layer) @ moved
            assert found.loss[row, column] == pytest.approx((first + second).item(), rel=1e-6)
    assert not found.stderr.any()


@pytest.mark.parametrize("draw", ["signs", "labels"])
def test_drawn_second_order_is_within_three_standard_errors(net, exact, data, draw):
    found = mp.profile(net, data, ["w3"], "taylor2", draws=400, draw=draw, first_order="none")
    for row, layer in enumerate(found.groups):
        moved = deviation(exact, layer, "int3")
        truth = 0.5 * (moved @ exact.ggn(layer) @ moved).item()
        assert found.stderr[row, 0] > 0
        assert abs(found.loss[row, 0] - truth) < 3 * found.stderr[row, 0]


def test_absolute_first_order_is_never_below_signed(net, data):
    signed = mp.profile(net, data, ["w3"], "taylor2", draws="exact", first_order="signed").loss
    absolute = mp.profile(net, data, ["w3"], "taylor2", draws="exact").loss
    assert (absolute >= signed).all()
    assert (absolute > signed).any()


@pytest.mark.parametrize("options", [["w10"], ["w10a10"]])
def test_without_labels_it_predicts_the_divergence_of_fine_formats(net, exact, options):
    found = mp.profile(net, exact.inputs, options, "taylor2", draws="exact")
    measured = mp.profile(net, exact.inputs, options, "measured_kl")
    assert found.loss_function == "kl_to_float"
    assert np.allclose(found.loss, measured.loss, rtol=0.05, atol=1e-12)


def test_with_labels_it_predicts_the_loss_increase_of_fine_formats(net, exact, data):
    found = mp.profile(net, data, ["w10a10"], "taylor2", draws="exact", first_order="signed")
    measured = mp.profile(net, data, ["w10a10"], "measured_loss")
    assert np.allclose(found.loss, measured.loss, rtol=0.02, atol=1e-9)


def test_a_layer_that_runs_twice_counts_with_its_cross_term():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.inner(torch.tanh(self.inner(x)))

    torch.manual_seed(0)
    net, x = Twice().double(), torch.randn(9, 4).double()
    found = mp.profile(net, mp.DataSet("d", x, batch_size=4), ["w10"], "taylor2", draws="exact")
    measured = mp.profile(net, x, ["w10"], "measured_kl")
    assert found.loss[0, 0] == pytest.approx(measured.loss[0, 0], rel=0.02)
