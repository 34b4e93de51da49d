"""MX blocks and block floating point against torchao and an oracle in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from mpsearch import formats

ELEMENTS = {
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 8),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 4),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 2),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2),
}


def _blocks(rows: int = 1000, columns: int = 1024) -> np.ndarray:
    """Rows of very different magnitude, with zero blocks, ties and exact powers of two."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rows, columns)) * np.exp2(rng.uniform(-60, 60, (rows, 1)))
    values[3] = 0.0
    values[4, 1:] = 0.0
    values[5] = np.round(values[5] / np.abs(values[5]).max() * 28) / 4  # ties in every element
    values[6] = np.exp2(np.round(rng.uniform(-9, 9, columns)))
    values[7, ::32] = 7.9999995
    return values.astype(np.float32)


def _oracle(values: np.ndarray, dtype: type, emax: int, block: int = 32) -> np.ndarray:
    """METHODS' formula in float64, elements by ml_dtypes, block by block."""
    top = float(ml_dtypes.finfo(dtype).max)
    flat = values.astype(np.float64).reshape(-1, block)
    amax = np.abs(flat).max(1, keepdims=True)
    exponent = np.clip(np.frexp(amax)[1] - 1 - emax, -127, 127)
    scale = np.where(amax == 0, 1.0, np.exp2(exponent.astype(np.float64)))
    codes = np.clip(flat / scale, -top, top).astype(dtype).astype(np.float64)
    return (codes * scale).astype(np.float32).reshape(values.shape)


@pytest.mark.parametrize("name", ELEMENTS)
def test_blocks_equal_the_formula_with_elements_of_ml_dtypes(name):
    values = _blocks()
    ours = formats.get(name).fake_quantize(torch.from_numpy(values)).numpy()
    assert np.array_equal(ours, _oracle(values, *ELEMENTS[name]))


@pytest.mark.parametrize("name", ELEMENTS)
def test_blocks_equal_torchao(name):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="torchao is missing")
    element = {
        "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2,
        "mxfp6_e3m2": mx.DTYPE_FP6_E3M2,
        "mxfp6_e2m3": mx.DTYPE_FP6_E2M3,
        "mxfp4": torch.float4_e2m1fn_x2,
    }[name]
    values = torch.from_numpy(_blocks())
    scale, data = mx.to_mx(values, element, 32)
    theirs = mx.to_dtype(data, scale, element, 32, torch.float32)
    assert torch.equal(formats.get(name).fake_quantize(values), theirs)


def test_blocks_at_the_ends_of_float32_keep_their_grid():
    tiny, huge = 2.0**-140, 3.0e38
    values = np.full((2, 32), tiny, dtype=np.float32)
    values[1] = huge
    values[:, ::3] *= np.float32(-0.3)
    for name, (dtype, emax) in ELEMENTS.items():
        ours = formats.get(name).fake_quantize(torch.from_numpy(values)).numpy()
        assert np.array_equal(ours, _oracle(values, dtype, emax)), name


def test_exponents_come_from_bits_not_from_a_rounded_logarithm():
    values = torch.zeros(1, 32)
    values[0, 0] = 7.9999995  # float32 log2 of this rounds to 3, the exponent is 2
    assert formats.get("mxfp4").fake_quantize(values)[0, 0] == 6.0


@pytest.mark.parametrize(("name", "width", "block"), [("mxint8", 8, 32), ("bfp8", 8, 16)])
def test_integer_elements_equal_the_formula(name, width, block):
    values = _blocks().astype(np.float64).reshape(-1, block)
    amax = np.abs(values).max(1, keepdims=True)
    shared = np.exp2(np.clip(np.frexp(amax)[1] - 1, -127, 127).astype(np.float64))
    step = np.where(amax == 0, 1.0, shared) * 2.0 ** (2 - width)
    top = 2 ** (width - 1) - 1
    wanted = np.clip(np.rint(values / step), -top, top) * step
    ours = formats.get(name).fake_quantize(torch.from_numpy(_blocks())).double().numpy()
    assert np.array_equal(ours.reshape(-1, block), wanted)


@pytest.mark.parametrize("width", range(2, 17))
def test_mantissas_of_every_width_stay_within_half_a_step(width):
    values = torch.from_numpy(_blocks(16, 64))
    rounded = formats.get(f"bfp{width}").fake_quantize(values)
    blocks, codes = values.double().view(-1, 16), rounded.double().view(-1, 16)
    amax = blocks.abs().amax(1, keepdim=True)
    step = torch.exp2(torch.frexp(amax)[1].double() - 1) * 2.0 ** (2 - width)
    # the top of the grid is a step below twice the shared power, so the largest may lose a step
    assert ((blocks - codes).abs() <= step).all()
    inside = blocks.abs() <= (2 ** (width - 1) - 1) * step
    assert ((blocks - codes).abs()[inside] <= (step / 2).expand_as(blocks)[inside]).all()


def test_short_last_block_is_scaled_by_its_own_values():
    values = torch.ones(2, 40)
    values[:, 32:] = 2.0**-20
    rounded = formats.get("mxfp4").fake_quantize(values)
    assert torch.equal(rounded, values)


def test_unscaled_cast_of_integer_elements_clips_to_the_grid():
    spec = formats.get("mxint8")
    cast = spec.cast(torch.tensor([0.0, 1 / 128, 3 / 128, 1.0, 5.0, -5.0]))
    assert cast.tolist() == [0.0, 0.0, 2 / 64, 1.0, 127 / 64, -127 / 64]
