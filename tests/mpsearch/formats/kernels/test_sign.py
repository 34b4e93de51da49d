"""Binary and ternary weights against their papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpsearch import formats
from mpsearch.errors import InputError


def _values() -> torch.Tensor:
    return torch.randn(6, 50, generator=torch.Generator().manual_seed(0))


def test_binary_scale_is_the_least_squares_one():
    values = _values()
    rounded = formats.get("binary").fake_quantize(values)
    for row, got in zip(values.double().numpy(), rounded.double().numpy(), strict=True):
        signs = np.where(row < 0, -1.0, 1.0)
        best = float(np.linalg.lstsq(signs[:, None], row, rcond=None)[0][0])
        assert got == pytest.approx(best * signs, rel=1e-6)


def test_ternary_has_the_threshold_and_scale_of_the_paper():
    values = _values()
    rounded = formats.get("ternary").fake_quantize(values)
    for row, got in zip(values.double().numpy(), rounded.double().numpy(), strict=True):
        kept = np.abs(row) > 0.7 * np.abs(row).mean()
        scale = np.abs(row[kept]).mean()
        assert got == pytest.approx(np.sign(row) * kept * scale, rel=1e-6)


@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_sums_of_huge_values_do_not_overflow(name):
    values = torch.full((1, 64), 3e38)
    assert torch.allclose(formats.get(name).fake_quantize(values), values)


def test_fixed_range_is_least_squares_for_evenly_spread_values():
    values = torch.linspace(-3, 3, 100_001, dtype=torch.float64)

    def error(rounded: torch.Tensor) -> float:
        return float((rounded - values).square().mean())

    for name, levels in (("binary", 2), ("ternary", 3)):
        ours = error(formats.get(name).quantizer(-3.0, 3.0)(values))
        # evenly spread values lie best in evenly wide cells, each at its middle
        assert ours == pytest.approx((6 / levels) ** 2 / 12, rel=1e-3)


def test_casts_are_signs():
    values = torch.tensor([-2.0, -0.6, -0.4, 0.0, 0.4, 0.6, 2.0])
    assert formats.get("binary").cast(values).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert formats.get("ternary").cast(values).tolist() == [-1, -1, 0, 0, 0, 1, 1]
    with pytest.raises(InputError, match="NaN"):
        formats.get("ternary").cast(torch.tensor([float("nan")]))
