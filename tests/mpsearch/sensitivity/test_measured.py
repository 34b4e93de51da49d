from __future__ import annotations

import copy

import numpy as np
import pytest
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


def test_floor_raises_small_and_negative_increases_but_not_float(net, data):
    plain = mp.profile(net, data, ["w8", "w4", "float"], "measured_loss")
    floored = mp.profile(net, data, ["w8", "w4", "float"], "measured_loss", floor=1e-3)
    assert np.allclose(floored.loss[:, :2], np.maximum(plain.loss[:, :2], 1e-3))
    assert not floored.loss[:, 2].any()


def test_the_model_is_left_as_it_was(net, data):
    before = copy.deepcopy(net.state_dict())
    mp.profile(net, data, ["w2a2"], "measured_loss")
    assert all((before[name] == value).all() for name, value in net.state_dict().items())
