"""Error figures against numpy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mpsearch import formats


def test_figures_are_those_of_the_difference():
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    spec = formats.get("int4")
    moved = (spec.fake_quantize(values).double() - values.double()).numpy()
    error = formats.quantization_error(spec, values)
    assert error.mean_squared == pytest.approx((moved**2).mean())
    assert error.largest == pytest.approx(abs(moved).max())
    power = (values.double().numpy() ** 2).mean()
    assert error.signal_to_noise == pytest.approx(10 * math.log10(power / (moved**2).mean()))


def test_a_bit_of_an_integer_is_worth_six_decibels():
    values = torch.rand(4, 10_000, generator=torch.Generator().manual_seed(0)) - 0.5
    noise = [
        formats.quantization_error(formats.get(f"int{b}"), values).signal_to_noise
        for b in range(4, 11)
    ]
    for fewer, more in itertools.pairwise(noise):
        assert more - fewer == pytest.approx(6.02, abs=0.6)


def test_exact_and_all_zero_tensors_have_no_noise():
    assert formats.quantization_error(formats.get("float"), torch.ones(3)).signal_to_noise == (
        math.inf
    )
    assert formats.quantization_error(formats.get("int4"), torch.zeros(2, 3)).mean_squared == 0
