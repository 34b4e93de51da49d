from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import mpsearch as mp
from mpsearch.sensitivity import output_error, winograd
from mpsearch.sensitivity.winograd import WinogradConvolution, suits_winograd

paddings = st.one_of(
    st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 4), st.integers(0, 4))
)
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sides=st.tuples(st.integers(3, 14), st.integers(3, 14)),
    padding=paddings,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_results_are_those_of_a_plain_convolution(batch, channels, sides, padding, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Conv2d(*channels, 3, padding=padding, dtype=dtype)
    inputs = torch.randn(batch, channels[0], *sides, dtype=dtype, generator=generator)
    weight = torch.randn(channels[1], channels[0], 3, 3, dtype=dtype, generator=generator)
    with torch.no_grad():
        found = WinogradConvolution(module, inputs)
        truth = functional.conv2d(inputs.double(), weight.double(), padding=padding)
        gap = found(weight) - found.arranged(truth)  # also 0 beyond the edges
    assert gap.abs().max() <= TOLERANCE[dtype] * 9 * channels[0] * inputs.abs().max() * (
        weight.abs().max()
    )


@given(
    sides=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_other_tensors_are_put_where_the_results_lie(sides, layout):
    module = nn.Conv2d(2, 3, 3, padding=1)
    values = torch.arange(1.0, 1 + 2 * 3 * sides[0] * sides[1]).view(2, 3, *sides)
    found = WinogradConvolution(module, torch.zeros(2, 2, *sides)).arranged(
        values.to(memory_format=layout)
    )
    for number in range(2):
        kept = found[number][found[number] > 0]
        assert sorted(kept.tolist()) == values[number].flatten().tolist()


def test_products_are_made_in_pieces_where_they_are_large(monkeypatch):
    module = nn.Conv2d(4, 5, 3, padding=1)
    inputs, weight = torch.randn(3, 4, 9, 9).double(), torch.randn(5, 4, 3, 3).double()
    convolve = WinogradConvolution(module, inputs)
    whole = convolve(weight)
    monkeypatch.setattr(winograd, "CHUNK", 36 * 5 * 8 * 4)  # four tiles
    assert torch.allclose(convolve(weight), whole, atol=1e-10)


def convolution(**settings):
    given = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}
    return nn.Conv2d(**{**given, **settings})


class Padded(nn.Conv2d):
    def forward(self, inputs):
        return super().forward(functional.pad(inputs, (1, 1, 1, 1)))


@pytest.mark.parametrize(
    "module",
    [
        convolution(stride=2),
        convolution(dilation=2),
        convolution(groups=2),
        convolution(kernel_size=5),
        convolution(padding_mode="reflect"),
        convolution(in_channels=3),
        convolution(out_channels=8),
        convolution().half(),
        Padded(64, 64, 3),
        nn.Linear(16, 64),
    ],
)
def test_other_layers_are_left_to_torch(module):
    channels = getattr(module, "in_channels", 64)
    inputs = torch.zeros(8, channels, 16, 16, dtype=module.weight.dtype)
    assert not suits_winograd(module, inputs, module.weight, 5)


@pytest.mark.parametrize(
    ("shape", "suits"),
    [
        ((8, 64, 16, 16), True),
        ((32, 64, 2, 2), True),
        ((8, 64, 2, 2), False),  # few tiles for the weight's transform
        ((64, 64, 1, 1), False),  # most of a tile would lie beyond the edge
        ((64, 64, 5, 5), False),
        ((0, 64, 16, 16), False),
        ((64, 16, 16), False),
    ],
)
def test_it_is_used_where_it_saves_time(shape, suits):
    module = convolution()
    assert suits_winograd(module, torch.zeros(shape), module.weight, 5) is suits


def test_few_weights_are_not_worth_the_transform_of_the_input():
    module = convolution()
    inputs = torch.zeros(8, 64, 16, 16)
    assert not suits_winograd(module, inputs, module.weight, 2)
    assert suits_winograd(module, inputs, module.weight, 3)


def test_large_weights_need_more_tiles_than_small_ones():
    large, small = convolution(in_channels=512, out_channels=512), convolution()
    for count, suits in ((8, False), (32, True)):
        assert suits_winograd(large, torch.zeros(count, 512, 7, 7), large.weight, 5) is suits
        assert suits_winograd(small, torch.zeros(count, 64, 7, 7), small.weight, 5)


def test_patched_convolutions_are_run_as_they_are():
    module = convolution()
    module._conv_forward = lambda inputs, *_: inputs
    assert not suits_winograd(module, torch.zeros(8, 64, 16, 16), module.weight, 5)


class Autocast(nn.Module):
    """Computes in bfloat16 inside, whatever is outside."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(inputs).float()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(
    ("estimator", "settings"), [("fisher_output", {"labels": "model"}), ("sqnr", {"at": "layer"})]
)
def test_autocast_is_left_to_torch(estimator, settings, outside):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(48, 48, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4)
    ).eval()
    data = mp.DataSet("d", torch.randn(16, 48, 16, 16), batch_size=16)
    options = ["w2", "w4", "w8"]
    truth = mp.profile(net, data, options, estimator, **settings).loss
    with torch.autocast("cpu", torch.bfloat16, enabled=outside):
        found = mp.profile(net if outside else Autocast(net), data, options, estimator, **settings)
    np.testing.assert_allclose(found.loss, truth, rtol=0.2)  # bfloat16 has 8 bits


def test_the_transforms_are_on_the_cpu_whatever_the_default_device_is():
    winograd._both_axes.cache_clear()
    module, inputs = convolution(), torch.randn(8, 64, 16, 16)
    weight = module.weight.detach()
    try:
        torch.set_default_device("meta")
        first = WinogradConvolution(module, inputs)(weight)
    finally:
        torch.set_default_device(None)
    assert torch.equal(first, WinogradConvolution(module, inputs)(weight))


def test_squares_are_summed_as_precisely_as_float64_does():
    # 448 x 448 places: one float32 norm over all tiles of a place would be off by 5e-5.
    module = convolution()
    inputs = torch.rand(1, 64, 448, 448, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = WinogradConvolution(module, inputs)(module.weight)
        norms = torch.linalg.vector_norm(found, dim=-1)
    total = float(norms.double().square().sum())
    assert total == pytest.approx(float(found.double().square().sum()), rel=1e-7)


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("fisher_output", {"labels": "model"}),
        ("taylor2", {"first_order": "signed"}),
        ("sqnr", {"at": "layer"}),
    ],
)
def test_scores_are_those_of_plain_convolutions(monkeypatch, estimator, settings, batch_size):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 48, 3),
        nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 50, 3, padding="same"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(50, 4),
    ).eval()
    data = mp.DataSet("d", torch.randn(16, 3, 16, 16), batch_size=batch_size)
    used = []
    monkeypatch.setattr(
        output_error,
        "WinogradConvolution",
        lambda *args: used.append(args) or WinogradConvolution(*args),
    )
    options = ["w2", "w4a4", "w4", "float", "w8"]
    fast = mp.profile(net, data, options, estimator, **settings)
    assert len(used) == 2 * (16 // batch_size)
    monkeypatch.setattr(output_error, "suits_winograd", lambda *_: False)
    plain = mp.profile(net, data, options, estimator, **settings)
    assert len(used) == 2 * (16 // batch_size)
    np.testing.assert_allclose(fast.loss, plain.loss, rtol=1e-5)
