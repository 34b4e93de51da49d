"""Integers against the written formula, evaluated in exact fractions, and against torch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mpsearch import formats
from mpsearch.errors import InputError


def _quotient(value: float, scale: Fraction) -> Fraction:
    return Fraction(float(np.float32(value) / np.float32(float(scale))))


def _fraction_row(row: list[float], width: int, asymmetric: bool) -> list[Fraction]:
    """The written formulas: scale and quotient as float32 has them, all else exact."""
    if asymmetric:
        low, high = min(0.0, *row), max(0.0, *row)
        top = 2**width - 1
        span = np.float32(np.float32(high) - np.float32(low)) / np.float32(top)
        scale = Fraction(float(span)) or Fraction(1)
        zero = min(max(round(_quotient(-low, scale)), 0), top)
        return [(min(max(round(_quotient(x, scale)) + zero, 0), top) - zero) * scale for x in row]
    top = 2 ** (width - 1) - 1
    amax = max(abs(x) for x in row)
    scale = Fraction(float(np.float32(amax) / np.float32(top))) or Fraction(1)
    return [min(max(round(_quotient(x, scale)), -top), top) * scale for x in row]


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("width", [2, 3, 4, 6, 8, 12, 16])
def test_channels_equal_the_formula_in_exact_fractions(width, asymmetric):
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(20, 30, generator=generator)
    values[1] = 0.0
    values[2] = values[2].abs() + 1.0  # one-sided
    values[3] = torch.linspace(-1, 1, 30)  # ties
    name = f"int{width}" + "_asym" * asymmetric
    rounded = formats.get(name).fake_quantize(values)
    for row, got in zip(values.tolist(), rounded.tolist(), strict=True):
        wanted = [float(np.float32(float(v))) for v in _fraction_row(row, width, asymmetric)]
        assert got == pytest.approx(wanted, rel=2e-7, abs=0)


@pytest.mark.parametrize("width", [4, 8])
def test_fixed_range_equals_torch_fake_quantize(width):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 2
    top = 2 ** (width - 1) - 1
    scale = 3.0 / top
    theirs = torch.fake_quantize_per_tensor_affine(values, scale, 0, -top, top)
    ours = formats.get(f"int{width}").quantizer(-3.0, 2.0)(values)
    # torch multiplies by the reciprocal of the scale: a tie may fall on the other side
    assert (ours - theirs).abs().le(1e-6).float().mean() > 0.999
    assert (ours - theirs).abs().max() <= scale * 1.0001


def test_zero_point_equals_torch_on_a_shifted_range():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 5 - 1
    scale = 5.0 / 255
    theirs = torch.fake_quantize_per_tensor_affine(values, scale, round(1 / scale), 0, 255)
    ours = formats.get("int8_asym").quantizer(-1.0, 4.0)(values)
    assert (ours - theirs).abs().le(1e-5).float().mean() > 0.99
    assert (ours - theirs).abs().max() <= scale * 1.0001


def test_all_zero_channel_stays_zero_and_leaves_the_others_alone():
    values = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    values[2] = 0.0
    for name in ["int4", "int4_asym", "int8_g4"]:
        rounded = formats.get(name).fake_quantize(values)
        assert torch.isfinite(rounded).all()
        assert (rounded[2] == 0).all()


@pytest.mark.parametrize("value", [3.0, -3.0])
@pytest.mark.parametrize("name", ["int4", "int8", "int4_asym", "int8_asym"])
def test_constant_channel_is_exact(name, value):
    values = torch.full((2, 7), value)
    assert torch.allclose(formats.get(name).fake_quantize(values), values, rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", ["int4", "int4_asym", "int8_tensor"])
@pytest.mark.parametrize("size", [1e-44, 1e-39, 1e-38, 3.4e38])
def test_ends_of_float32_make_no_nan_and_stay_within_the_step(name, size):
    values = torch.linspace(-1, 1, 64).view(1, -1) * size
    rounded = formats.get(name).fake_quantize(values)
    assert torch.isfinite(rounded).all()
    # below the smallest normal scale the step cannot shrink any further
    step = max(2 * size / 14, torch.finfo(torch.float32).tiny)
    assert ((rounded.double() - values.double()).abs() <= step * 1.01).all()


def test_integer_cast_rounds_ties_to_even_and_clips():
    values = torch.tensor([-9.0, -2.5, -1.5, 0.5, 1.5, 2.5, 9.0])
    assert formats.get("int4").cast(values).tolist() == [-7, -2, -2, 0, 2, 2, 7]
    assert formats.get("int4_asym").cast(values).tolist() == [0, 0, 0, 0, 2, 2, 9]
    with pytest.raises(InputError, match="NaN"):
        formats.get("int4").cast(torch.tensor([float("nan")]))


def test_step_of_a_range_is_the_scale():
    assert formats.get("int4").uniform_step(-2.0, 7.0) == 1.0
    assert formats.get("int8_asym").uniform_step(0.0, 255.0) == 1.0
    assert formats.get("int8_asym").uniform_step(51.0, 255.0) == 1.0  # widened to hold zero
    assert formats.get("fp8_e4m3").uniform_step(-1.0, 1.0) is None


def test_a_channel_of_subnormal_values_becomes_zero_and_leaves_its_neighbours_alone():
    values = torch.tensor([[1e-40, -1e-40, 0.0], [1.0, -0.5, 0.25]])
    rounded = formats.get("int8").fake_quantize(values)
    assert rounded[0].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(rounded[1:], formats.get("int8").fake_quantize(values[1:]))
    # the smallest normal scale, 1.2e-38, is the finest step of all
    step = torch.finfo(torch.float32).tiny
    tiny = torch.tensor([[3.0 * step, 1.6 * step]])
    assert formats.get("int8").fake_quantize(tiny).tolist() == [[3.0 * step, 2.0 * step]]
