from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import mpsearch as mp
from mpsearch.formats import get


def test_weight_term_is_the_inner_product_of_gradient_and_deviation(net, exact, data):
    found = mp.profile(net, data, ["w2", "w4"], "gradient_deviation")
    for row, layer in enumerate(found.groups):
        weight = exact.weight(layer)
        for column, name in enumerate(("int2", "int4")):
            moved = weight - get(name).fake_quantize(weight)
            truth = (exact.gradient(layer) * moved).sum().abs().item()
            assert found.loss[row, column] == pytest.approx(truth, rel=1e-6)
    assert not found.stderr.any()


def test_activation_term_is_the_inner_product_at_the_layers_input(net, exact, data):
    found = mp.profile(net, data, ["w:float/a:int4"], "gradient_deviation")
    values = torch.tanh(net.conv(exact.inputs)).detach()

    def after_tanh(values):
        x = torch.tanh(net.point(nn.functional.silu(net.grouped(values)))).mean(dim=(2, 3))
        return nn.functional.cross_entropy(net.head(x), exact.targets)

    quantize = get("int4").quantizer(*found.activation_ranges["grouped"])
    truth = (jacrev(after_tanh)(values) * (values - quantize(values))).sum().abs().item()
    row = found.groups.index("grouped")
    assert found.loss[row, 0] == pytest.approx(truth, rel=1e-6)


def test_activations_of_the_first_layer_are_scored_too(net, exact, data):
    found = mp.profile(net, data, ["w:float/a:int4"], "gradient_deviation")
    quantize = get("int4").quantizer(*found.activation_ranges["conv"])
    slope = jacrev(lambda x: nn.functional.cross_entropy(net(x), exact.targets))(exact.inputs)
    truth = (slope * (exact.inputs - quantize(exact.inputs))).sum().abs().item()
    assert found.loss[found.groups.index("conv"), 0] == pytest.approx(truth, rel=1e-6)


def test_first_order_score_predicts_the_loss_change_of_a_fine_format(net, exact, data):
    found = mp.profile(net, data, ["w12"], "gradient_deviation")
    float_loss = nn.functional.cross_entropy(net(exact.inputs), exact.targets)
    for row, layer in enumerate(found.groups):
        moved = get("int12").fake_quantize(exact.weight(layer))
        changed = functional_call(net, {f"{layer}.weight": moved}, (exact.inputs,))
        change = float(nn.functional.cross_entropy(changed, exact.targets) - float_loss)
        assert found.loss[row, 0] == pytest.approx(abs(change), rel=0.05, abs=1e-8)


def test_batching_changes_nothing(net, exact):
    tables = [
        mp.profile(
            net,
            mp.DataSet("d", exact.inputs, exact.targets, batch_size=size),
            ["w4a8", "w8a4"],
            "gradient_deviation",
        ).loss
        for size in (12, 5, 1)
    ]
    assert np.allclose(tables[0], tables[1], rtol=1e-9)
    assert np.allclose(tables[0], tables[2], rtol=1e-9)


def test_a_dead_layer_scores_zero_and_is_named(net, data):
    net.head.weight.data.zero_()
    found = mp.profile(net, data, ["w4"], "gradient_deviation")
    row = found.groups.index("conv")
    assert found.loss[row, 0] == 0
    assert any("conv" in text and "zero" in text for text in found.warnings)
