from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.formats import get
from mpsearch.sensitivity.hessian_products import hessian_vector_products


def test_traces_agree_with_the_exact_hessian_within_three_standard_errors(net, exact, data):
    assert sum(p.numel() for p in net.parameters()) < 500
    found = mp.profile(net, data, ["w4", "w8"], "hessian_trace", probes=400)
    for layer in found.groups:
        truth = float(exact.hessian(layer).trace())
        estimate = found.statistics["hessian_trace"][layer]
        error = found.statistics["hessian_trace_stderr"][layer]
        assert error > 0
        assert abs(estimate - truth) < 3 * error, layer


def test_score_is_the_mean_trace_times_the_squared_error_of_quantization(net, data):
    found = mp.profile(net, data, ["w4"], "hessian_trace", probes=4)
    for row, layer in enumerate(found.groups):
        weight = net.get_submodule(layer).weight.detach()
        moved = mp.formats.get("int4").fake_quantize(weight) - weight
        scale = float(moved.square().sum()) / weight.numel()
        trace = found.statistics["hessian_trace"][layer]
        error = found.statistics["hessian_trace_stderr"][layer]
        assert found.loss[row, 0] == pytest.approx(trace * scale)
        assert found.stderr[row, 0] == pytest.approx(error * scale)


def test_hessian_vector_product_equals_that_of_pyhessian(net, exact):
    from pyhessian import hessian as pyhessian

    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.endswith("weight"))
    weights = [p for p in net.parameters() if p.requires_grad]
    vector = [torch.randn_like(w) for w in weights]
    loader = [(exact.inputs[:5], exact.targets[:5]), (exact.inputs[5:10], exact.targets[5:10])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pyhessian(net, nn.functional.cross_entropy, dataloader=loader, cuda=False)
        _, theirs = reference.dataloader_hv_product(vector)
    loss = nn.functional.cross_entropy(net(exact.inputs[:10]), exact.targets[:10])
    ((_, ours),) = hessian_vector_products(loss, weights, [vector], 1)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-10)


def test_batching_changes_nothing(net, exact):
    tables = [
        mp.profile(
            net,
            mp.DataSet("d", exact.inputs, exact.targets, batch_size=size),
            ["w4"],
            "hessian_trace",
            probes=3,
        ).loss
        for size in (12, 5, 1)
    ]
    assert np.allclose(tables[0], tables[1], rtol=1e-9)
    assert np.allclose(tables[0], tables[2], rtol=1e-9)


def test_a_seed_gives_the_same_scores_and_another_seed_others(net, data):
    first, again, other = (
        mp.profile(net, data, ["w4"], "hessian_trace", probes=3, seed=seed).loss
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_probe_is_refused_because_it_has_no_standard_error(net, data):
    with pytest.raises(mp.errors.InputError, match="probes must be at least 2"):
        mp.profile(net, data, ["w4"], "hessian_trace", probes=1)


def test_engine_pyhessian_gives_the_same_profile(net, data):
    ours = mp.profile(net, data, ["w4"], "hessian_trace", probes=3)
    theirs = mp.profile(net, data, ["w4"], "hessian_trace", probes=3, engine="pyhessian")
    assert np.allclose(ours.loss, theirs.loss, rtol=1e-4)
    assert np.allclose(ours.stderr, theirs.stderr, rtol=1e-4)
    assert ours.float_loss == pytest.approx(theirs.float_loss)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_engine_pyhessian_refuses_activations(net, data):
    with pytest.raises(mp.errors.InputError, match="weights only"):
        mp.profile(net, data, ["w4a8"], "hessian_trace", engine="pyhessian")


def test_activation_term_agrees_with_the_exact_hessian_in_a_layers_input(net, exact, data):
    found = mp.profile(net, data, ["w:float/a:int3"], "hessian_trace", probes=600)
    values = torch.tanh(net.conv(exact.inputs)).detach()

    def tail(hidden, target):
        x = torch.tanh(net.point(nn.functional.silu(net.grouped(hidden[None]))))
        return nn.functional.cross_entropy(net.head(x.mean(dim=(2, 3))), target[None])

    traces = [
        torch.func.hessian(tail)(hidden, target).reshape(36, 36).trace().item()
        for hidden, target in zip(values, exact.targets, strict=True)
    ]
    trace = sum(traces) / len(traces)
    estimate = found.statistics["activation_hessian_trace"]["grouped"]
    error = found.statistics["activation_hessian_trace_stderr"]["grouped"]
    assert abs(estimate - trace) < 3 * error
    quantize = get("int3").quantizer(*found.activation_ranges["grouped"])
    moved = (quantize(values) - values).square().sum().item() / 12
    row = found.groups.index("grouped")
    assert found.loss[row, 0] == pytest.approx(estimate / 36 * moved, rel=1e-6)
    assert found.stderr[row, 0] == pytest.approx(error / 36 * moved, rel=1e-6)


def test_adaptive_probes_stop_when_the_ranking_is_settled(net, data):
    strict = mp.profile(net, data, ["w4"], "hessian_trace", probes="auto", settled=1e-6)
    loose = mp.profile(net, data, ["w4"], "hessian_trace", probes="auto", settled=0.3)
    assert loose.statistics["probes"]["conv"] == 8
    assert strict.statistics["probes"]["conv"] > 8
    fixed = mp.profile(net, data, ["w4"], "hessian_trace", probes=8)
    assert np.array_equal(fixed.loss, loose.loss)


def test_no_more_probes_are_drawn_than_allowed(net, data):
    found = mp.profile(
        net, data, ["w4"], "hessian_trace", probes="auto", settled=0.0, most_probes=11
    )
    assert found.statistics["probes"]["conv"] == 11


def test_input_traces_are_found_on_request_where_options_leave_inputs_alone(net, data):
    settings = {"probes": 16, "seed": 3}
    asked = mp.profile(net, data, ["w4"], "hessian_trace", activations=True, **settings)
    formats = mp.profile(net, data, ["w4a8"], "hessian_trace", **settings)
    alone = mp.profile(net, data, ["w4"], "hessian_trace", **settings)
    assert asked.statistics["activation_hessian_trace"] == pytest.approx(
        formats.statistics["activation_hessian_trace"]
    )
    assert "activation_hessian_trace" not in alone.statistics
    # A weight-only score takes no term from them.
    squared = asked.loss.ravel() / [asked.statistics["hessian_trace"][g] for g in asked.groups]
    plain = alone.loss.ravel() / [alone.statistics["hessian_trace"][g] for g in alone.groups]
    assert np.allclose(squared, plain)
