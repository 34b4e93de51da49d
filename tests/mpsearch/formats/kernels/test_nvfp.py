"""NVFP4 against torchao and an oracle in numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from mpsearch import formats


def _values() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 1024)) * np.exp2(rng.uniform(-6, 2, (1000, 64))).repeat(16, 1)
    values[3] = 0.0
    return values.astype(np.float32)


def _oracle(values: np.ndarray) -> np.ndarray:
    """METHODS' formula, scales and elements by ml_dtypes."""
    tensor_scale = np.float32(np.abs(values).max() / np.float32(6 * 448))
    blocks = values.reshape(-1, 16)
    amax = np.abs(blocks).max(1, keepdims=True)
    wanted = np.minimum(amax / (np.float32(6) * tensor_scale), np.float32(448))
    scale = wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    total = np.where(scale == 0, np.float32(1), scale) * tensor_scale
    codes = np.clip(blocks / total, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return (codes * total).reshape(values.shape)


def test_blocks_equal_the_formula():
    values = _values()
    ours = formats.get("nvfp4").fake_quantize(torch.from_numpy(values)).numpy()
    assert np.array_equal(ours, _oracle(values))


def test_blocks_equal_torchao():
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="no torchao")
    values = torch.from_numpy(_values())
    tensor_scale = nv.per_tensor_amax_to_scale(values.abs().max())
    scales, packed = nv.nvfp4_quantize(values, 16, tensor_scale)
    codes = nv.f4_unpacked_to_f32(nv.unpack_uint4(packed)).view(-1, 16)
    theirs = codes * (scales.float().view(-1, 1) * tensor_scale)
    ours = formats.get("nvfp4").fake_quantize(values).view(-1, 16)
    # torchao multiplies by a reciprocal where the definition divides: a value within a float32
    # rounding of a tie may fall on the other side
    differ = ours != theirs
    assert int(differ.sum()) <= 2
    assert ((ours - values.view(-1, 16)).abs()[differ] <= 1.001 * tensor_scale * 448).all()


def test_block_too_small_for_its_scale_becomes_zero_and_not_nan():
    values = torch.full((1, 32), 1e-9)
    values[0, 0] = 100.0
    rounded = formats.get("nvfp4").fake_quantize(values)
    assert rounded[0, 0] == pytest.approx(100.0)
    assert torch.equal(rounded[0, 16:], torch.zeros(16))


def test_fixed_tensor_scale_comes_from_calibration_and_saturates():
    quantize = formats.get("nvfp4").quantizer(-1.0, 1.0)
    assert quantize(torch.full((1, 16), 5.0)).unique().item() == pytest.approx(1.0)
    values = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    values[0, 0] = 1.0  # so that the tensor's own range is the calibrated one
    assert torch.equal(quantize(values), formats.get("nvfp4").fake_quantize(values))
