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


class Wide(nn.Module):
    """Convolutions of so many channels that their errors are computed with channels last."""

    def __init__(self, **geometry: object) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Conv2d(3, 20, 3, padding=1)
        self.second = nn.Conv2d(20, 24, **geometry)
        self.head = nn.Linear(24, 4)

    def forward(self, inputs):
        return self.tail(self.second(torch.tanh(self.first(inputs))))

    def tail(self, values):
        return self.head(torch.tanh(values).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "dilation": 2},
        {"kernel_size": (1, 3), "padding": "same", "padding_mode": "circular"},
        {"kernel_size": 7},  # one position is left
        {"kernel_size": 1},
    ],
)
def test_wide_convolutions_score_as_by_hand(geometry):
    net = Wide(**geometry).eval()
    inputs, targets = torch.randn(6, 3, 7, 7), torch.arange(6) % 4
    data = mp.DataSet("d", inputs, targets, batch_size=4)
    values = torch.tanh(net.first(inputs)).detach()
    hidden = net.second(values).detach().requires_grad_()
    total = nn.functional.cross_entropy(net.tail(hidden), targets, reduction="sum")
    (slope,) = torch.autograd.grad(total, [hidden])
    weight = net.second.weight.detach().clone()
    errors = []
    for bits in (2, 5):
        net.second.weight.data = get(f"int{bits}").fake_quantize(weight)
        errors.append(net.second(values).detach() - hidden.detach())
        net.second.weight.data = weight
    products = [(slope * error).flatten(1).sum(dim=1) for error in errors]
    squares = [float((slope * error).square().sum()) / 6 for error in errors]
    found = mp.profile(net, data, ["w2", "w5"], "fisher_output")
    row = found.groups.index("second")
    assert found.loss[row] == pytest.approx(squares, rel=1e-5)
    # The first term of taylor2 sums the same products over each input's elements.
    terms = [
        mp.profile(net, data, ["w2", "w5"], "taylor2", draws="exact", first_order=first).loss[row]
        for first in ("signed", "none")
    ]
    assert terms[0] - terms[1] == pytest.approx([float(p.mean()) for p in products], rel=1e-4)
