"""Powers of two against ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from mpsearch import formats
from mpsearch.errors import InputError


def test_cast_equals_ml_dtypes_on_a_million_values():
    rng = np.random.default_rng(0)
    powers = np.exp2(np.arange(-149, 128, dtype=np.float64))
    points = np.concatenate([powers, 1.5 * powers, 0.75 * powers]).astype(np.float32)
    points = np.concatenate([points, np.nextafter(points, np.float32(0)), [0.0, np.inf, np.nan]])
    values = np.concatenate([points, np.exp2(rng.uniform(-149, 128, 1_000_000)), -points[:9]])
    values = values.astype(np.float32)
    theirs = values.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    ours = formats.get("e8m0").cast(torch.from_numpy(values), overflow="ieee").numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_saturating_cast_keeps_zero_and_overflow_within_the_range():
    cast = formats.get("e8m0").cast(torch.tensor([0.0, 3.4e38, float("inf"), -1.0]))
    assert cast[:3].tolist() == [2.0**-127, 2.0**127, 2.0**127]
    assert torch.isnan(cast[3])


def test_scales_are_not_offered_to_layers():
    with pytest.raises(InputError, match="no zero and no sign"):
        formats.get("e8m0").fake_quantize(torch.ones(2, 2))
    with pytest.raises(InputError, match="scales only"):
        formats.parse_option("w:e8m0")
