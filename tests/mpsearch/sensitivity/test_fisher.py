from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.formats import get


def test_exact_ggn_trace_equals_brute_force(net, exact, data):
    found = mp.profile(net, data, ["w4"], "ggn_trace", draws="exact")
    for row, layer in enumerate(found.groups):
        truth = exact.ggn(layer).trace().item()
        assert found.statistics["ggn_trace"][layer] == pytest.approx(truth, rel=1e-6)
        weight = exact.weight(layer)
        moved = float((get("int4").fake_quantize(weight) - weight).square().mean())
        assert found.loss[row, 0] == pytest.approx(truth * moved, rel=1e-6)
    assert not found.stderr.any()


@pytest.mark.parametrize("draw", ["signs", "labels"])
def test_drawn_ggn_trace_is_within_three_standard_errors_of_brute_force(net, exact, data, draw):
    found = mp.profile(net, data, ["w4"], "ggn_trace", draws=300, draw=draw)
    for layer in found.groups:
        error = found.statistics["ggn_trace_stderr"][layer]
        assert error > 0
        gap = abs(found.statistics["ggn_trace"][layer] - exact.ggn(layer).trace().item())
        assert gap < 3 * error


def test_ggn_trace_of_a_squared_error_equals_brute_force(net, exact):
    targets = torch.randn(12, 3).double()
    data = mp.DataSet("regression", exact.inputs, targets, batch_size=5)
    found = mp.profile(net, data, ["w4"], "ggn_trace", loss="mse", draws="exact")
    for layer in found.groups:
        truth = float(exact.jacobian(layer).square().sum()) * 2 / (3 * 12)
        assert found.statistics["ggn_trace"][layer] == pytest.approx(truth, rel=1e-6)


def test_ggn_trace_needs_no_targets(net, exact, data):
    bare = mp.profile(net, exact.inputs, ["w4"], "ggn_trace", draws="exact").loss
    assert np.allclose(bare, mp.profile(net, data, ["w4"], "ggn_trace", draws="exact").loss)


def test_a_loss_of_unknown_curvature_is_refused_by_name(net, data):
    def hinge(output, target):
        return nn.functional.multi_margin_loss(output, target)

    with pytest.raises(mp.errors.InputError, match=r"hinge.*hessian_trace"):
        mp.profile(net, data, ["w4"], "ggn_trace", loss=hinge)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_empirical_fisher_trace_equals_brute_force_whatever_the_batch_size(net, exact, batch_size):
    data = mp.DataSet("d", exact.inputs, exact.targets, batch_size=batch_size)
    found = mp.profile(net, data, ["w4"], "empirical_fisher")
    for row, layer in enumerate(found.groups):
        truth = exact.sample_gradients(layer).square().sum(dim=1).mean().item()
        assert found.statistics["fisher_trace"][layer] == pytest.approx(truth, rel=1e-6)
        weight = exact.weight(layer)
        step = (weight.max() - weight.min()).item() / 15
        assert found.loss[row, 0] == pytest.approx(truth * step**2, rel=1e-6)


def test_empirical_fisher_adds_the_trace_and_noise_of_the_layers_input(net, exact, data):
    found = mp.profile(net, data, ["w:float/a:int4"], "empirical_fisher")
    x = exact.inputs.clone().requires_grad_()
    total = nn.functional.cross_entropy(net(x), exact.targets, reduction="sum")
    (slope,) = torch.autograd.grad(total, x)
    trace = float(slope.square().sum()) / 12
    step = float(exact.inputs.max() - exact.inputs.min()) / 15
    row = found.groups.index("conv")
    assert found.statistics["activation_fisher_trace"]["conv"] == pytest.approx(trace)
    assert found.loss[row, 0] == pytest.approx(trace * step**2)


def test_formats_without_a_uniform_step_are_compared_by_measured_noise(net, exact, data):
    found = mp.profile(net, data, ["w4", "w:fp4_e2m1"], "empirical_fisher")
    for row, layer in enumerate(found.groups):
        weight = exact.weight(layer)
        for column, name in enumerate(("int4", "fp4_e2m1")):
            moved = (get(name).fake_quantize(weight) - weight).square().mean().item()
            trace = found.statistics["fisher_trace"][layer]
            assert found.loss[row, column] == pytest.approx(trace * moved, rel=1e-6)
