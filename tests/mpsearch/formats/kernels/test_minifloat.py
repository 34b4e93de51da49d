"""Floating-point casts, bit for bit against ml_dtypes, torch and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from mpsearch import formats
from mpsearch.errors import InputError

ML_DTYPES = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "e4m3_ieee": ml_dtypes.float8_e4m3,
    "e3m4_ieee": ml_dtypes.float8_e3m4,
    "e4m3_fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2_fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11_fnuz": ml_dtypes.float8_e4m3b11fnuz,
}


def _same_bits(ours: torch.Tensor, theirs: np.ndarray) -> None:
    mine = ours.numpy()
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(mine), nan)
    # compares the sign of zero as well
    assert np.array_equal(mine[~nan].view(np.int32), theirs[~nan].view(np.int32))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_cast_has_the_bits_of_ml_dtypes_on_a_million_hard_values(name, hard_values):
    spec = formats.get(name)
    values = hard_values(spec.grid.positives())
    theirs = values.astype(ML_DTYPES[name]).astype(np.float32)
    _same_bits(spec.cast(torch.from_numpy(values), overflow="ieee"), theirs)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_saturating_cast_equals_ml_dtypes_after_clipping(name, hard_values):
    spec = formats.get(name)
    values = hard_values(spec.grid.positives(), 50_000)
    clipped = np.clip(values, -spec.grid.top, spec.grid.top).astype(np.float32)
    theirs = clipped.astype(ML_DTYPES[name]).astype(np.float32)
    _same_bits(spec.cast(torch.from_numpy(values)), theirs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
        ("e4m3_fnuz", torch.float8_e4m3fnuz),
        ("e5m2_fnuz", torch.float8_e5m2fnuz),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
    ],
)
def test_cast_equals_torch_own_types_within_their_range(name, dtype, hard_values):
    spec = formats.get(name)
    top = torch.finfo(dtype).max
    grid = spec.grid.positives() if hasattr(spec, "grid") else [2.0**-14, 1.0, top]
    values = torch.from_numpy(hard_values(grid))
    values = values.clamp(-top, top)
    assert torch.equal(spec.cast(values), values.to(dtype).float())


def _nearest_even(value: float, exponent_bits: int, mantissa: int) -> Fraction:
    """Round one value in exact arithmetic: no float operation beyond reading it."""
    bias = 2 ** (exponent_bits - 1) - 1
    magnitude = abs(Fraction(value))
    power = 1 - bias
    while Fraction(2) ** (power + 1) <= magnitude:
        power += 1
    step = Fraction(2) ** (power - mantissa)
    whole = round(magnitude / step) * step  # Fraction rounds half to even
    top = Fraction(2) ** (2**exponent_bits - 1 - bias) * (2 - Fraction(1, 2**mantissa))
    return min(whole, top) * (-1 if value < 0 else 1)


@pytest.mark.parametrize("exponent", range(1, 8))
@pytest.mark.parametrize("mantissa", [*range(8), 12, 13, 20, 23])
def test_every_width_rounds_as_exact_fractions_do(exponent, mantissa, hard_values):
    spec = formats.get(f"e{exponent}m{mantissa}")
    if mantissa < 8:
        positives = spec.grid.positives()
    else:  # too many to list: both ends of some binades
        powers = np.exp2(np.linspace(-spec.grid.bias, spec.grid.emax, 20).round())
        steps = np.exp2(-mantissa) * np.arange(4.0)
        inner = powers[:, None] * np.concatenate([1 + steps, 2 - steps[1:]])
        positives = [*np.unique(inner), spec.grid.top]
    values = hard_values(positives, 2 * 3 * (2 * len(positives) + 8) + 200)
    values = np.random.default_rng(1).permutation(values)[:600]
    ours = spec.cast(torch.from_numpy(values)).tolist()
    for value, got in zip(values.tolist(), ours, strict=True):
        assert Fraction(got) == _nearest_even(value, exponent, mantissa), value


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp6_e3m2", "e3m4", "e5m10"])
def test_float64_values_round_once(name):
    spec = formats.get(name)
    tie = (spec.grid.smallest * 3) / 2  # between one and two steps, ties to two
    nudged = np.nextafter(tie, 0)  # float32 would round this up to the tie
    cast = spec.cast(torch.tensor([tie, nudged], dtype=torch.float64))
    assert cast.dtype == torch.float64
    assert cast.tolist() == [2 * spec.grid.smallest, spec.grid.smallest]


def test_all_codes_being_numbers_makes_e4m3_differ_from_fp8_e4m3():
    assert formats.get("e4m3").grid.top == 480
    assert formats.get("fp8_e4m3").grid.top == 448
    assert formats.get("e5m2").grid.top == 114688
    assert formats.get("fp8_e5m2").grid.top == 57344


@pytest.mark.parametrize("name", ["fp6_e3m2", "fp4_e2m1", "e3m4", "nvfp4", "mxfp4"])
def test_nan_is_refused_where_there_is_no_code_for_it(name):
    with pytest.raises(InputError, match="1 of 2 values are NaN"):
        formats.get(name).cast(torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "e4m3_fnuz", "fp16", "mxfp8"])
def test_nan_stays_nan_where_there_is_a_code_for_it(name):
    cast = formats.get(name).cast(torch.tensor([float("nan"), 1.0]))
    assert torch.isnan(cast).tolist() == [True, False]


def test_infinity_saturates_or_becomes_what_the_format_has():
    infinity = torch.tensor([float("inf"), float("-inf")])
    assert formats.get("fp8_e5m2").cast(infinity).tolist() == [57344, -57344]
    assert formats.get("fp8_e5m2").cast(infinity, overflow="ieee").tolist() == infinity.tolist()
    assert torch.isnan(formats.get("fp8_e4m3").cast(infinity, overflow="ieee")).all()
    assert formats.get("fp4_e2m1").cast(infinity, overflow="ieee").tolist() == [6, -6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_its_type(dtype):
    values = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype)
    cast = formats.get("fp8_e4m3").cast(values)
    assert cast.dtype == dtype
    assert torch.equal(cast.float(), formats.get("fp8_e4m3").cast(values.float()))


def test_eight_exponent_bits_with_infinities_are_bfloat16_and_float32(hard_values):
    values = torch.from_numpy(hard_values([2.0**-126, 1.0, 3e38], 20_000))
    assert torch.equal(
        formats.get("e8m7_ieee").cast(values, overflow="ieee"), values.bfloat16().float()
    )
    assert torch.equal(formats.get("e8m23_ieee").cast(values), values)


@pytest.mark.parametrize("mantissa", [1, 3, 10])
def test_eight_exponent_bits_round_as_exact_fractions_do(mantissa, hard_values):
    spec = formats.get(f"e8m{mantissa}")
    values = hard_values([2.0**-140, 2.0**-126, 0.75, 1.0, 2.0**100], 400).astype(np.float64)
    values *= 2.0 ** np.random.default_rng(0).integers(-5, 2, len(values))
    for value, got in zip(
        values.tolist(), spec.cast(torch.from_numpy(values)).tolist(), strict=True
    ):
        assert Fraction(got) == _nearest_even(value, 8, mantissa), value


@pytest.mark.parametrize("name", ["e8m1", "e8m3", "e8m7_g16", "e4m20", "e8m3_mse", "e5m16_tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_wide_formats_scale_the_largest_magnitude_to_the_largest_value(name, dtype):
    values = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[2] = 0.0
    spec = formats.get(name)
    rounded = spec.fake_quantize(values)
    assert rounded.dtype == dtype
    assert torch.isfinite(rounded).all()
    assert not rounded[2].any()
    kept = torch.finfo(dtype).eps
    relative = ((rounded.double() - values.double()).abs() / values.double().abs())[values != 0]
    assert relative.max() <= (2.0 ** -(spec.grid.mantissa + 1) + kept) * (
        1.7 if "mse" in name else 1
    )
    quantize = spec.quantizer(-4.0, 4.0) if not spec.dynamic else spec.fake_quantize
    moved = (quantize(values).double() - values.double()).abs()
    assert (moved <= (2.0 ** -(spec.grid.mantissa + 1) + kept) * values.double().abs()).all()


def test_values_beyond_the_type_of_the_tensor_saturate_to_a_value_of_the_grid_it_has():
    huge = torch.tensor([65504.0, 60000.0, -65504.0], dtype=torch.float16)
    assert formats.get("e5m2").cast(huge).tolist() == [57344, 57344, -57344]
    assert formats.get("e5m3").cast(huge).tolist() == [61440, 61440, -61440]
    assert formats.get("e6m2_ieee").cast(huge).tolist() == [57344, 57344, -57344]
    assert formats.get("e5m10").cast(huge).tolist() == huge.tolist()
    top = torch.finfo(torch.float32).max
    assert formats.get("e8m3").cast(torch.tensor([top])).item() == 1.875 * 2.0**127
    assert formats.get("int16").cast(huge).tolist() == [32752, 32752, -32752]
    assert formats.get("bfp16").cast(huge).abs().max() < 2


@pytest.mark.parametrize(("name", "digits"), [("fp16", 11), ("bf16", 8)])
def test_sixteen_bit_floats_round_float64_once(name, digits):
    above_a_tie = 1 + 2.0**-digits + 2.0**-40
    values = torch.tensor([above_a_tie, 1 + 2.0**-digits, -above_a_tie], dtype=torch.float64)
    up = 1 + 2.0 ** (1 - digits)
    assert formats.get(name).cast(values).tolist() == [up, 1, -up]
    assert formats.get(name).fake_quantize(values[None]).tolist() == [[up, 1, -up]]
    far = torch.tensor([1e300, float("inf")], dtype=torch.float64)
    assert torch.isinf(formats.get(name).cast(far, overflow="ieee")).all()
    assert formats.get(name).cast(far).tolist() == [formats.get(name).top] * 2


def test_without_mantissa_bits_ties_go_up_but_half_the_smallest_to_zero():
    spec = formats.get("e3m0")  # 0, 0.25, 0.5, 1, 2, 4, 8, 16
    values = torch.tensor([0.125, 0.375, 0.75, 1.5, 3.0, 6.0, 12.0])
    assert spec.cast(values).tolist() == [0, 0.5, 1, 2, 4, 8, 16]
