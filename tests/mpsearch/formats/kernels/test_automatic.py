"""The choice of exponent bits against trying every one of them."""

from __future__ import annotations

import pytest
import torch

from mpsearch import formats
from mpsearch.errors import InputError


def _samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(12, 300, generator=generator)
    return {
        "uniform": torch.rand(12, 300, generator=generator) - 0.5,
        "normal": normal,
        "heavy": normal * torch.exp(2 * torch.randn(12, 300, generator=generator)),
    }


@pytest.mark.parametrize("suffix", ["", "_g32", "_tensor", "_mse"])
@pytest.mark.parametrize("width", [4, 6, 8])
@pytest.mark.parametrize("sample", ["uniform", "normal", "heavy"])
def test_the_exponent_width_of_least_error_is_chosen(sample, width, suffix):
    values = _samples()[sample]
    ours = formats.get(f"fp{width}_auto{suffix}").fake_quantize(values)
    candidates = [
        formats.get(f"e{x}m{width - 1 - x}{suffix}").fake_quantize(values) for x in range(1, width)
    ]
    errors = [float((c - values).double().square().sum()) for c in candidates]
    assert torch.equal(ours, candidates[errors.index(min(errors))])


def test_wider_distributions_get_more_exponent_bits():
    samples = _samples()
    uniform = formats.get("fp8_auto").fake_quantize(samples["uniform"])
    assert torch.equal(uniform, formats.get("e1m6").fake_quantize(samples["uniform"]))
    heavy = formats.get("fp8_auto").fake_quantize(samples["heavy"])
    assert not torch.equal(heavy, formats.get("e1m6").fake_quantize(samples["heavy"]))


def test_there_is_no_grid_before_there_is_a_tensor():
    with pytest.raises(InputError, match="chooses its grid"):
        formats.get("fp8_auto").cast(torch.ones(3))
