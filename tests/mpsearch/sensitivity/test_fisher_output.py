from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.formats import get


def grouped_output(net, inputs):
    """The output of the second layer, as a leaf, and the loss from there on."""
    hidden = net.grouped(torch.tanh(net.conv(inputs))).detach().requires_grad_()

    def tail(values):
        x = torch.tanh(net.point(nn.functional.silu(values)))
        return net.head(x.mean(dim=(2, 3)))

    return hidden, tail


def output_error(net, exact, option, ranges):
    weight = get(option[0]).fake_quantize(net.grouped.weight.detach())
    values = torch.tanh(net.conv(exact.inputs)).detach()
    rounded = get(option[1]).quantizer(*ranges)(values) if option[1] else values
    return nn.functional.conv2d(rounded, weight, padding=1, groups=2) - net.grouped(values).detach()


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_score_is_the_mean_over_inputs_of_squared_gradient_times_squared_error(
    net, exact, batch_size
):
    data = mp.DataSet("d", exact.inputs, exact.targets, batch_size=batch_size)
    found = mp.profile(net, data, ["w3", "w4a3", "w4a8"], "fisher_output")
    hidden, tail = grouped_output(net, exact.inputs)
    total = nn.functional.cross_entropy(tail(hidden), exact.targets, reduction="sum")
    (slope,) = torch.autograd.grad(total, [hidden])
    row = found.groups.index("grouped")
    for column, option in enumerate([("int3", None), ("int4", "int3"), ("int4", "int8")]):
        error = output_error(net, exact, option, found.activation_ranges["grouped"])
        truth = float((slope * error).square().sum()) / 12
        assert found.loss[row, column] == pytest.approx(truth, rel=1e-6)
    assert not found.stderr.any()


@pytest.mark.parametrize("draw", ["signs", "labels"])
def test_labels_of_the_model_give_the_diagonal_of_the_gauss_newton_matrix(net, exact, draw):
    found = mp.profile(
        net, exact.inputs, ["w3"], "fisher_output", labels="model", draws=400, draw=draw
    )
    hidden, tail = grouped_output(net, exact.inputs)
    p = torch.softmax(tail(hidden).detach(), dim=1)
    diagonal = torch.zeros_like(hidden)
    for c in range(3):
        for e in range(3):
            # Entries of diag(p) - p pᵀ between the Jacobian's rows of classes c and e.
            (jc,) = torch.autograd.grad(tail(hidden)[:, c].sum(), [hidden])
            (je,) = torch.autograd.grad(tail(hidden)[:, e].sum(), [hidden])
            entry = p[:, c] * (float(c == e) - p[:, e])
            diagonal += entry[:, None, None, None] * jc * je
    error = output_error(net, exact, ("int3", None), None)
    truth = float((diagonal * error.square()).sum()) / 12
    row = found.groups.index("grouped")
    assert found.stderr[row, 0] > 0
    assert abs(found.loss[row, 0] - truth) < 3 * found.stderr[row, 0]


def test_without_targets_the_labels_are_the_models(net, exact):
    given = mp.profile(net, exact.inputs, ["w3"], "fisher_output", seed=4)
    model = mp.profile(net, exact.inputs, ["w3"], "fisher_output", seed=4, labels="model")
    assert np.array_equal(given.loss, model.loss)


def test_a_dead_layer_scores_zero_and_is_named(net, data):
    net.head.weight.data.zero_()
    found = mp.profile(net, data, ["w4a4"], "fisher_output")
    assert found.loss[found.groups.index("conv"), 0] == 0
    assert any("conv" in text and "zero" in text for text in found.warnings)


@pytest.mark.parametrize("wrong", [{"labels": "mine"}, {"draw": "coin"}, {"draws": 1}])
def test_wrong_settings_are_refused_with_their_value(net, data, wrong):
    with pytest.raises(mp.errors.InputError, match=str(next(iter(wrong.values())))):
        mp.profile(net, data, ["w4"], "fisher_output", **wrong)
