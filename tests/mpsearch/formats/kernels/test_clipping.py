"""Clipped ranges against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpsearch import formats
from mpsearch.formats.kernels.clipping import CLIP_RATIOS


def _values() -> torch.Tensor:
    values = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    values[:, 7] = 12.0  # an outlier worth clipping
    values[3] = 0.0
    return values


@pytest.mark.parametrize("name", ["int2", "int4", "int4_asym", "fp4_e2m1", "e2m3", "int4_g100"])
def test_search_finds_the_best_ratio_of_the_grid(name):
    values = _values()
    ours = (formats.get(f"{name}_mse").fake_quantize(values) - values).square().sum(1).double()
    full = (formats.get(name).fake_quantize(values) - values).square().sum(1).double()
    assert (ours <= full * (1 + 1e-6)).all()
    if "_g" in name:
        return
    for index, row in enumerate(values):
        errors = []
        for ratio in CLIP_RATIOS:
            quantize = formats.get(name).quantizer(
                float(row.min()) * ratio, float(row.max()) * ratio
            )
            errors.append(float((quantize(row) - row).square().sum()))
        assert float(ours[index]) == pytest.approx(min(errors), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("percentile", [50, 90, 99, 100])
def test_percentile_keeps_that_share_of_the_magnitudes(percentile):
    values = _values()
    rounded = formats.get(f"int8_p{percentile}").fake_quantize(values).numpy()
    magnitudes = np.abs(values.numpy())
    for row, got in zip(magnitudes, rounded, strict=True):
        bound = np.quantile(row, percentile / 100, method="inverted_cdf")
        assert np.abs(got).max() == pytest.approx(bound, rel=1e-5)


def test_percentile_clips_each_side_of_an_asymmetric_range():
    values = torch.cat([torch.linspace(0, 1, 99), torch.tensor([50.0])]).view(1, -1)
    rounded = formats.get("int8_asym_p99").fake_quantize(values)
    assert rounded.max() == pytest.approx(1.0, rel=1e-5)
    assert rounded.min() == 0


def test_whole_tensor_can_be_searched():
    values = _values()
    ours = formats.get("int4_tensor_mse").fake_quantize(values)
    assert len(ours.unique()) <= 15
    plain = formats.get("int4_tensor").fake_quantize(values)
    assert (ours - values).square().sum() < (plain - values).square().sum()


@pytest.mark.parametrize("name", ["int4_mse", "int3_asym_mse", "fp4_auto_mse", "fp8_e4m3_mse"])
@pytest.mark.parametrize("power", [-100, 100])
def test_the_search_finds_the_same_range_at_either_end_of_float32(name, power):
    values, unit = _values(), 2.0**power
    spec = formats.get(name)
    assert torch.equal(spec.fake_quantize(values * unit), spec.fake_quantize(values) * unit)


@pytest.mark.parametrize(
    ("percentile", "number", "kept"), [("99.9", 1000, 999), ("70", 10, 7), ("99.99", 10**5, 99990)]
)
def test_percentiles_are_decimal_numbers(percentile, number, kept):
    values = torch.arange(1.0, number + 1).view(1, -1)
    assert formats.get(f"int8_p{percentile}").fake_quantize(values).max() == pytest.approx(kept)


def test_the_last_of_more_values_than_float32_can_count_is_found():
    values = torch.full((2**24 + 3,), 0.5)
    values[5] = 2.0
    assert formats.get("int8_tensor_p100").fake_quantize(values).max() == 2.0
