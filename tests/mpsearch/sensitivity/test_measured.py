from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.formats import get


def test_weights_are_measured_as_if_substituted_by_hand(net, exact, data):
    found = mp.profile(net, data, ["w2", "w4"], "measured_loss")
    reference = float(nn.functional.cross_entropy(net(exact.inputs), exact.targets))
    assert found.float_loss == pytest.approx(reference, rel=1e-12)
    for row, layer in enumerate(found.groups):
        for column, name in enumerate(("int2", "int4")):
            changed = copy.deepcopy(net)
            weight = changed.get_submodule(layer).weight
            weight.data = get(name).fake_quantize(weight.data)
            loss = float(nn.functional.cross_entropy(changed(exact.inputs), exact.targets))
            assert found.loss[row, column] == pytest.approx(loss - reference, rel=1e-9)


def test_activations_are_measured_as_if_substituted_by_hand(net, exact, data):
    found = mp.profile(net, data, ["w4a3"], "measured_loss")
    row = found.groups.index("head")
    pooled = {}
    handle = net.head.register_forward_pre_hook(lambda _, args: pooled.update(x=args[0]))
    reference = float(nn.functional.cross_entropy(net(exact.inputs), exact.targets))
    handle.remove()
    quantize = get("int3").quantizer(*found.activation_ranges["head"])
    weight = get("int4").fake_quantize(net.head.weight.detach())
    output = nn.functional.linear(quantize(pooled["x"]), weight, net.head.bias)
    loss = float(nn.functional.cross_entropy(output, exact.targets))
    assert found.loss[row, 0] == pytest.approx(loss - reference, rel=1e-9)


def test_gains_beyond_belief_are_warned_of():
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.tensor([[1.0, 0.45], [1.0, 0.55]])
    # At 2 bits the small weights become 0 and 1, which makes the model sure of what it guessed.
    few = mp.DataSet("d", torch.full((3, 2), 4.0), torch.ones(3, dtype=torch.long))
    found = mp.profile(net, few, ["w2", "w8"], "measured_loss")
    assert found.float_loss == pytest.approx(math.log1p(math.exp(-0.4)), rel=1e-6)
    gain = found.float_loss - math.log1p(math.exp(-4.0))
    (warning,) = [text for text in found.warnings if "promise" in text]
    assert f"{gain:.3g}" in warning
    assert f"{found.float_loss:.3g}" in warning
    raised = mp.profile(net, few, ["w2", "w8"], "measured_loss", floor=0.0)
    assert not any("promise" in text for text in raised.warnings)


def test_floor_raises_small_and_negative_increases_but_not_float(net, data):
    plain = mp.profile(net, data, ["w8", "w4", "float"], "measured_loss")
    floored = mp.profile(net, data, ["w8", "w4", "float"], "measured_loss", floor=1e-3)
    assert np.allclose(floored.loss[:, :2], np.maximum(plain.loss[:, :2], 1e-3))
    assert not floored.loss[:, 2].any()


def test_the_model_is_left_as_it_was(net, data):
    before = copy.deepcopy(net.state_dict())
    mp.profile(net, data, ["w2a2"], "measured_loss")
    assert all((before[name] == value).all() for name, value in net.state_dict().items())


def test_divergence_is_that_of_torch_on_substituted_weights(net, exact):
    found = mp.profile(net, exact.inputs, ["w2", "w4"], "measured_kl")
    log_p = net(exact.inputs).log_softmax(1)
    for row, layer in enumerate(found.groups):
        for column, name in enumerate(("int2", "int4")):
            changed = copy.deepcopy(net)
            weight = changed.get_submodule(layer).weight
            weight.data = get(name).fake_quantize(weight.data)
            log_q = changed(exact.inputs).log_softmax(1)
            truth = nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
            assert found.loss[row, column] == pytest.approx(truth.item(), rel=1e-9)


def test_divergence_does_not_read_the_labels(net, exact, data):
    bare = mp.profile(net, mp.DataSet("d", exact.inputs, batch_size=5), ["w3"], "measured_kl")
    assert np.array_equal(bare.loss, mp.profile(net, data, ["w3"], "measured_kl").loss)


def test_noise_to_signal_ratio_at_the_output_is_measured_by_substitution(net, exact, data):
    found = mp.profile(net, data, ["w3"], "sqnr")
    y = net(exact.inputs)
    for row, layer in enumerate(found.groups):
        changed = copy.deepcopy(net)
        weight = changed.get_submodule(layer).weight
        weight.data = get("int3").fake_quantize(weight.data)
        noise = (changed(exact.inputs) - y).square().sum(1)
        truth = (noise / y.square().sum(1)).mean().item()
        assert found.loss[row, 0] == pytest.approx(truth, rel=1e-9)


def test_noise_to_signal_ratio_at_the_layer_compares_its_own_output(net, exact, data):
    found = mp.profile(net, data, ["w3a4"], "sqnr", at="layer")
    y = net.conv(exact.inputs)
    rounded = get("int4").quantizer(*found.activation_ranges["conv"])(exact.inputs)
    weight = get("int3").fake_quantize(net.conv.weight.detach())
    noisy = nn.functional.conv2d(rounded, weight, net.conv.bias, stride=2, padding=1)
    truth = ((noisy - y).square().sum() / y.square().sum()).item()
    assert found.loss[found.groups.index("conv"), 0] == pytest.approx(truth, rel=1e-6)
