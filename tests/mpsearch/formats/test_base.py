"""Effective bits against the written table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch import formats

ROWS, COLUMNS = 64, 1024


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int4", 4 + 16 / COLUMNS),
        ("int4_g128", 4 + 16 / 128),
        ("int4_asym", 4 + (16 + 4) / COLUMNS),
        ("int3_asym_g64", 3 + (16 + 3) / 64),
        ("int8_tensor", 8 + 16 / (ROWS * COLUMNS)),
        ("fp8_e4m3", 8 + 16 / COLUMNS),
        ("fp8_e5m2_tensor", 8 + 16 / (ROWS * COLUMNS)),
        ("e3m4_g32", 8 + 16 / 32),
        ("mxfp4", 4.25),
        ("mxfp6", 6.25),
        ("mxfp8_e5m2", 8.25),
        ("mxint8", 8.25),
        ("nvfp4", 4.5 + 32 / (ROWS * COLUMNS)),
        ("nf4", 4 + 16 / 64),
        ("bfp5", 5 + 8 / 16),
        ("ternary", 1.6 + 16 / COLUMNS),
        ("binary_g64", 1 + 16 / 64),
        ("any4", 4 + 16 / 128 + 16 * 16 / COLUMNS),
        ("fp16", 16),
        ("float", 32),
        ("fp4_auto", 4 + 16 / COLUMNS + 8 / (ROWS * COLUMNS)),
    ],
)
def test_scales_zero_points_and_tables_are_counted(name, expected):
    assert formats.get(name).effective_bits((ROWS, COLUMNS)) == pytest.approx(expected, rel=1e-12)


def test_short_last_block_carries_a_full_scale():
    assert formats.get("mxfp4").effective_bits((2, 33)) == 4 + 2 * 2 * 8 / 66
    assert formats.get("int4_g128").effective_bits((10, 3, 3, 3)) == 4 + 10 * 16 / 270


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0, 5)])
def test_shapes_without_rows_have_effective_bits_too(shape):
    for name in formats.known():
        spec = formats.get(name)
        assert spec.effective_bits(shape) >= spec.bits


@given(
    name=st.sampled_from([n for n in formats.known() if n != "nvfp4"]),
    shape=st.lists(st.integers(1, 50), min_size=2, max_size=4),
)
def test_stored_bits_are_whole_scales_more_than_the_elements(name, shape):
    spec = formats.get(name)
    total = math.prod(shape)
    extra = (spec.effective_bits(shape) - spec.bits) * total
    extra -= shape[0] * spec.row_bits + spec.tensor_bits
    if spec.scale_bits:
        scales = extra / spec.scale_bits
        assert scales == pytest.approx(round(scales), abs=1e-6)
        assert 1 <= round(scales) <= total
    else:
        assert extra == pytest.approx(0, abs=1e-6)


def test_only_the_identity_is_float():
    assert [name for name in formats.known() if formats.get(name).is_float] == ["float"]
    assert formats.get("float").bits == 32
