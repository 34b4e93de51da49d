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


def test_elementwise_adds_up_magnitudes(net, exact, data):
    found = mp.profile(net, data, ["w3"], "gradient_deviation", elementwise=True)
    signed = mp.profile(net, data, ["w3"], "gradient_deviation")
    for row, layer in enumerate(found.groups):
        weight = exact.weight(layer)
        moved = weight - get("int3").fake_quantize(weight)
        truth = (exact.gradient(layer) * moved).abs().sum().item()
        assert found.loss[row, 0] == pytest.approx(truth, rel=1e-6)
    assert (found.loss > signed.loss).all()


def quantized_everywhere(net, bits):
    return {
        f"{name}.weight": get(f"int{bits}").fake_quantize(module.weight.detach(), channel_axis=0)
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("loss", ["cross_entropy", "kl_to_float"])
def test_gradients_at_the_quantized_point_are_those_of_the_quantized_model(net, exact, data, loss):
    found = mp.profile(net, data, ["w3", "w4"], "gradient_deviation", at="quantized", loss=loss)
    with torch.no_grad():
        log_p = net(exact.inputs).log_softmax(1)

    def compared(output):
        if loss == "cross_entropy":
            return nn.functional.cross_entropy(output, exact.targets)
        log_q = output.log_softmax(1)
        return nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")

    for column, bits in enumerate((3, 4)):
        point = quantized_everywhere(net, bits)
        for row, layer in enumerate(found.groups):
            own = f"{layer}.weight"
            slope = jacrev(
                lambda w, own=own, point=point: compared(
                    functional_call(net, {**point, own: w}, (exact.inputs,))
                )
            )(point[own])
            truth = (slope * (exact.weight(layer) - point[own])).sum().abs().item()
            assert found.loss[row, column] == pytest.approx(truth, rel=1e-5, abs=1e-12)


def test_rounded_activations_pass_gradients_straight_through(net, exact, data):
    found = mp.profile(net, data, ["w:float/a:int4"], "gradient_deviation", at="quantized")
    quantize = {
        name: get("int4").quantizer(*found.activation_ranges[name])
        for name in ("conv", "grouped", "point", "head")
    }

    def rounded(name, values):
        return values + (quantize[name](values.detach()) - values.detach())

    x = exact.inputs.clone()
    x = torch.tanh(net.conv(rounded("conv", x)))
    x = nn.functional.silu(net.grouped(rounded("grouped", x)))
    x = torch.tanh(net.point(rounded("point", x))).mean(dim=(2, 3)).detach().requires_grad_()
    at = quantize["head"](x.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net.head(at), exact.targets), at)
    truth = (slope * (x.detach() - at.detach())).sum().abs().item()
    row = found.groups.index("head")
    assert found.loss[row, 0] == pytest.approx(truth, rel=1e-6)
    assert found.loss[found.groups.index("conv"), 0] > 0


def test_another_point_is_refused(net, data):
    with pytest.raises(mp.errors.InputError, match="quantized"):
        mp.profile(net, data, ["w4"], "gradient_deviation", at="middle")
