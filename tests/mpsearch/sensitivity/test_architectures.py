"""Attention, recurrence and routing: right numbers, or an error that says what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

import mpsearch as mp
from mpsearch.menu import Wishes
from mpsearch.sensitivity import known


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.inner(x)
        return self.head((x + self.attention(x, x, x)[0]).mean(dim=1))


class Encoder(nn.Module):
    """Runs fused attention, whose backward pass has no derivative."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 4, dropout=0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(dim=1))


class Routed(nn.Module):
    """Sends every input to the expert of the highest logit; the choice has no gradient."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        chosen = self.router(x).argmax(dim=1)
        hidden = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            hidden = hidden.index_copy(0, rows, torch.tanh(expert(x[rows])))
        return self.head(hidden)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


SHAPES = {Attention: (5, 6), Encoder: (5, 4), Routed: (4,), Recurrent: (5, 4)}


def made(kind):
    torch.manual_seed(0)
    model = kind().double().eval()
    data = mp.DataSet(
        "d", torch.randn(12, *SHAPES[kind]).double(), torch.randint(0, 3, (12,)), batch_size=5
    )
    return model, data


def exact_hessian(model, data, name):
    weight = dict(model.named_parameters())[name].detach()

    def loss(w):
        output = functional_call(model, {name: w}, (data.inputs,))
        return nn.functional.cross_entropy(output, data.targets)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return hessian(loss)(weight).reshape(weight.numel(), -1)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("options", [["w4", "w8"], ["w4a8", "w8a8"]])
def test_every_estimator_scores_or_says_what_to_do(kind, options):
    model, data = made(kind)
    for entry in known():
        settings = {"candidates": "measured_kl,fisher_output"} if entry.name == "auto" else {}
        refused = None
        try:
            found = mp.profile(model, data, options, entry.name, **settings)
        except mp.errors.InputError as error:
            refused = str(error)
        if refused is None:
            assert np.isfinite(found.loss).all()
        else:
            assert any(word in refused for word in ("skip", "offer", "use")), refused


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        (Encoder, "encoder.self_attn.in_proj_weight"),
        (Encoder, "encoder.linear1.weight"),
        (Routed, "experts.1.weight"),
        (Recurrent, "recurrent.weight_hh_l0"),
    ],
)
def test_traces_and_eigenvalues_equal_the_exact_hessian(kind, parameter):
    model, data = made(kind)
    exact = exact_hessian(model, data, parameter)
    names = [parameter.removesuffix(".weight"), parameter]
    traced = mp.profile(model, data, ["w4"], "hessian_trace", probes=400).statistics
    layer = next(name for name in names if name in traced["hessian_trace"])
    error = traced["hessian_trace_stderr"][layer]
    assert abs(traced["hessian_trace"][layer] - exact.trace().item()) < 4 * error
    top = mp.profile(
        model, data, ["w4"], "hessian_top_eigenvalue", iterations=300, tolerance=1e-6
    ).statistics["hessian_top_eigenvalue"][layer]
    assert top == pytest.approx(torch.linalg.eigvalsh(exact)[-1].item(), rel=1e-2)


def test_a_router_without_gradient_is_named():
    model, data = made(Routed)
    for estimator in ("hessian_trace", "gradient_deviation", "fisher_output"):
        found = mp.profile(model, data, ["w4"], estimator)
        assert any("zero" in text and "router" in text for text in found.warnings)
        assert not found.loss[found.groups.index("router")].any()


@pytest.mark.parametrize("estimator", ["taylor2", "ggn_trace", "empirical_fisher", "orthogonality"])
def test_experts_that_see_some_inputs_only_are_refused_where_inputs_must_be_told_apart(estimator):
    model, data = made(Routed)
    with pytest.raises(mp.errors.InputError, match=r"experts.*cannot be told apart"):
        mp.profile(model, data, ["w4"], estimator)


@pytest.mark.parametrize("estimator", ["gradient_deviation", "hessian_trace"])
def test_attention_inputs_below_autograd_are_refused_and_weights_alone_are_not(estimator):
    model, data = made(Attention)
    with pytest.raises(mp.errors.InputError, match=r"attention\.out_proj.*skip it"):
        mp.profile(model, data, ["w4a8", "w8a8"], estimator)
    assert mp.profile(model, data, ["w4", "w8"], estimator).loss.any()
    skipped = Wishes(skip=["attention*"])
    assert mp.profile(model, data, ["w4a8", "w8a8"], estimator, wishes=skipped).loss.any()


def test_a_layer_multiplied_inside_attention_is_refused_by_taps():
    model, data = made(Attention)
    skipped = Wishes(skip=["attention.in_proj_weight"])
    with pytest.raises(mp.errors.InputError, match=r"out_proj"):
        mp.profile(model, data, ["w4"], "fisher_output", wishes=skipped)
