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
@pytest.mark.parametrize("mantissa", range(8))
def test_every_width_rounds_as_exact_fractions_do(exponent, mantissa, hard_values):
    spec = formats.get(f"e{exponent}m{mantissa}")
    positives = spec.grid.positives()
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
