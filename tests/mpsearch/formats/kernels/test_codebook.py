"""Tables: NF4 from its definition, nearest entries, and learned tables against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm

from mpsearch import formats
from mpsearch.errors import InputError
from mpsearch.formats.codebook import NF4, Codebook


def test_nf4_is_made_of_normal_quantiles():
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2  # QLoRA's mean of both ends, 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    table = np.sort(np.concatenate([positive, [0.0], negative])) / norm.ppf(offset)
    assert np.array(NF4) == pytest.approx(table, abs=2e-6)


def test_blocks_take_the_nearest_entry_of_the_scaled_table():
    values = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    rounded = formats.get("nf4").fake_quantize(values).double().numpy()
    table = np.array(NF4)
    for row, got in zip(values.double().numpy(), rounded, strict=True):
        for start in range(0, 200, 64):
            block, ours = row[start : start + 64], got[start : start + 64]
            scale = np.abs(block).max()
            nearest = np.abs(block[:, None] - table[None] * scale).min(1)
            assert np.abs(ours - block) == pytest.approx(nearest, abs=1e-6 * scale)


def test_a_block_of_zeros_stays_zero_under_a_table_without_zero():
    spec = Codebook(name="thirds", table=(-1.0, -1 / 3, 1 / 3, 1.0), size=4)
    values = torch.tensor([[0, 0, 0, 0, 3.0, 0.6, -1.2, 0.0], [0.0] * 8])
    expected = [[0, 0, 0, 0, 3.0, 1.0, -1.0, -1.0], [0.0] * 8]  # a tie goes to the lower entry
    torch.testing.assert_close(spec.fake_quantize(values), torch.tensor(expected))
    short = spec.fake_quantize(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]))
    assert short.tolist() == [[1.0, 1.0, 1.0, 1.0, 0.0]]


def test_a_table_reaches_the_largest_number_without_infinity():
    spec = Codebook(name="odd", table=(-7.3, -1.0, 0.0, 2.9), size=4)
    top = torch.finfo(torch.float32).max
    assert torch.isfinite(spec.fake_quantize(torch.full((1, 4), -top))).all()


def test_cast_ties_go_to_the_lower_entry():
    middle = (NF4[3] + NF4[4]) / 2
    cast = formats.get("nf4").cast(torch.tensor([middle, 5.0, -5.0], dtype=torch.float64))
    assert cast.tolist() == [NF4[3], 1.0, -1.0]


@pytest.mark.parametrize("width", [1, 2])
def test_learned_table_is_as_good_as_the_best_split_of_a_small_row(width):
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        row = torch.randn(1, 12, generator=generator).double()
        ours = (formats.get(f"any{width}").fake_quantize(row) - row).square().sum().item()
        ordered = np.sort(row.numpy()[0])
        best = min(
            sum(((p - p.mean()) ** 2).sum() for p in np.split(ordered, cuts) if p.size)
            for cuts in itertools.combinations(range(1, 12), 2**width - 1)
        )
        assert best <= ours * (1 + 1e-9)
        assert ours <= 1.6 * best  # k-means finds a local optimum
    assert ours > 0


def test_learned_tables_beat_the_uniform_grid_of_as_many_bits():
    values = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))

    def error(name: str) -> float:
        return formats.quantization_error(formats.get(name), values).mean_squared

    assert error("any4") < error("nf4_b128") < error("int4_g128")
    assert error("any3") < error("int3_g128")


def test_row_with_few_distinct_values_is_exact():
    values = torch.tensor([[1.0, -0.5, 0.25, 1.0] * 8])
    assert torch.allclose(formats.get("any4").fake_quantize(values), values)


def test_learned_formats_have_no_unscaled_cast():
    with pytest.raises(InputError, match="fake_quantize"):
        formats.get("any4").cast(torch.ones(3))
