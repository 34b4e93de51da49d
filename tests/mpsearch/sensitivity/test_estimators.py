"""What holds for every estimator in the catalog."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

import mpsearch as mp
from mpsearch.errors import InputError, ModelError
from mpsearch.sensitivity import known

EVERY = [entry.name for entry in known()]
WEIGHTS_ONLY = [entry.name for entry in known() if not entry.scores_activations]
WITH_ACTIVATIONS = [entry.name for entry in known() if entry.scores_activations]


@pytest.mark.parametrize("name", EVERY)
def test_scores_are_finite_float64_and_zero_for_float(net, data, name):
    found = mp.profile(net, data, ["w3", "w8", "float"], name)
    assert found.loss.dtype == found.stderr.dtype == np.float64
    assert np.isfinite(found.loss).all()
    assert (found.stderr >= 0).all()
    assert not found.loss[:, 2].any()
    assert not found.stderr[:, 2].any()
    assert found.loss[:, 0].any()


@pytest.mark.parametrize("name", EVERY)
def test_the_model_is_left_as_it_was(net, data, name):
    net.point.weight.requires_grad_(False)
    net.train()
    before = copy.deepcopy(net.state_dict())
    mp.profile(net, data, ["w3", "w8"], name)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.training
    assert net.conv.weight.requires_grad
    assert not net.point.weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("name", EVERY)
def test_a_frozen_layer_is_scored_like_any_other(net, data, name):
    free = mp.profile(net, data, ["w3"], name).loss
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    assert np.array_equal(mp.profile(net, data, ["w3"], name).loss, free)


@pytest.mark.parametrize("name", EVERY)
def test_the_same_seed_gives_the_same_profile_bit_for_bit(net, data, name):
    one, two = (mp.profile(net, data, ["w3", "w6"], name, seed=5) for _ in range(2))
    assert np.array_equal(one.loss, two.loss)
    assert np.array_equal(one.stderr, two.stderr)


@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_options_that_differ_only_in_activations_are_refused_by_weight_scores(net, data, name):
    with pytest.raises(InputError, match=r"scores weights only.*measured_loss"):
        mp.profile(net, data, ["w8a4", "w8a8"], name)


@pytest.mark.parametrize("name", WITH_ACTIVATIONS)
def test_options_that_differ_only_in_activations_get_different_scores(net, data, name):
    found = mp.profile(net, data, ["w8a2", "w8a8"], name)
    assert (found.loss[:, 0] != found.loss[:, 1]).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_model_that_computes_nan_is_refused_not_scored(net, data, name):
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner(x) * float("nan")

    entry = next(entry for entry in known() if entry.name == name)
    if "no forward" in entry.passes:
        pytest.skip("never runs the model")
    with pytest.raises(ModelError, match=r"nan|not finite"):
        mp.profile(Broken(), data, ["w3"], name)


def test_weights_with_nan_are_refused(net, data):
    net.point.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError):
        mp.profile(net, data, ["w3"], "hessian_trace")


def test_the_catalog_loads_without_torch():
    code = "import sys, mpsearch.sensitivity as s; s.known(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_setting_is_refused_with_the_estimators_name(net, data):
    with pytest.raises(InputError, match="estimator hessian_trace"):
        mp.profile(net, data, ["w3"], "hessian_trace", probe=3)


@pytest.mark.parametrize("name", WITH_ACTIVATIONS)
def test_an_input_that_two_layers_share_counts_for_each_layer_alone(name):
    class Fork(torch.nn.Module):
        """Two branches on one input, of which `copies` gives each its own."""

        def __init__(self, *, copies):
            super().__init__()
            torch.manual_seed(0)
            self.stem = torch.nn.Linear(4, 5)
            self.left, self.right = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
            self.copies = copies

        def forward(self, x):
            x = torch.tanh(self.stem(x))
            other = x + 0.0 if self.copies else x
            return torch.tanh(self.left(x)) * self.right(other)

    torch.manual_seed(1)
    data = mp.DataSet("d", torch.randn(8, 4), torch.randint(0, 3, (8,)), batch_size=3)
    options = ["w:float/a:int3", "w4a4"]
    shared, apart = (
        mp.profile(Fork(copies=copies), data, options, name).loss for copies in (False, True)
    )
    assert np.allclose(shared, apart, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("entry", known(), ids=lambda entry: entry.name)
def test_only_expansions_are_said_to_lose_their_meaning_below_3_bits(net, data, entry):
    settings = {"candidates": "measured_kl,sqnr"} if entry.name == "auto" else {}
    found = mp.profile(net, data, ["w2", "w4"], entry.name, **settings)
    finer = mp.profile(net, data, ["w3", "w4"], entry.name, **settings)
    expansions = {
        "gradient_deviation",
        "taylor2",
        "hessian_trace",
        "hessian_top_eigenvalue",
        "ggn_trace",
        "empirical_fisher",
        "fisher_output",
    }
    warned = any("w2: below 3 bits" in text for text in found.warnings)
    assert warned == (entry.name in expansions)
    assert not any("below 3 bits" in text for text in finer.warnings)
