"""Biases and batch norms corrected on data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.errors import InputError
from mpsearch.formats import get
from mpsearch.quantize import (
    restore,
)

INT4, INT8 = get("int4"), get("int8")


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )


def test_bias_correction_gives_each_channel_its_mean_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()
    x = torch.rand(64, 3, 6, 6) + 0.5
    before = state(model)
    choice = {"0": "w3", "3": "w3"}
    plain, corrected = mp.apply(model, choice, x), mp.apply(model, choice, x, correct_bias=True)
    for part in (slice(0, 1), slice(0, 4)):
        axes = (0, 2, 3) if part.stop == 1 else (0,)
        wanted = model[part](x).mean(axes)
        assert (plain[part](x).mean(axes) - wanted).abs().max() > 1e-2
        torch.testing.assert_close(corrected[part](x).mean(axes), wanted, atol=1e-4, rtol=1e-4)
    mp.apply(model, choice, x, correct_bias=True, inplace=True)
    restore(model)
    assert unchanged(model, before)
    assert model[0].bias is None
    with pytest.raises(InputError, match="no layer of the allocation"):
        mp.apply(nn.Sequential(nn.Embedding(4, 2)), {"0": "w4"}, torch.arange(4), correct_bias=True)


def test_batch_norms_get_the_pooled_statistics_of_the_quantized_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.randn(10, 3, 6, 6) * 3 + 1
    before = state(model)
    data = mp.DataSet("x", x, batch_size=4)  # batches of 4, 4 and 2
    quantized = mp.apply(model, {"0": "w2"}, data, reestimate_batchnorm=True)
    seen = quantized[0](x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(quantized[1].running_mean, seen.mean(1))
    torch.testing.assert_close(quantized[1].running_var, seen.var(1))
    assert unchanged(model, before)
    assert not quantized[1].training
    mp.apply(model, {"0": "w2"}, data, reestimate_batchnorm=True, inplace=True)
    restore(model)
    assert unchanged(model, before)
    with pytest.raises(InputError, match="no batch norm"):
        mp.apply(model[:1], {"0": "w2"}, data, reestimate_batchnorm=True)
