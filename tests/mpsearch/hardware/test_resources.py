from __future__ import annotations

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import InputError, UnknownNameError


class Attention(nn.Module):
    """Projections named as decoders name them, keys and values narrower than queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.k_proj = nn.Linear(8, 4)
        self.v_proj = nn.Linear(8, 4)

    def forward(self, x):
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


TOKENS = torch.zeros(2, 3, 8)


def test_the_cache_holds_keys_and_values_of_every_token_in_their_format() -> None:
    menu = ["w4a8", "w4a16"]
    costs = mp.price(
        Attention(), TOKENS, menu, resources=["kv_cache_memory"], batch=2, context=1000
    )
    assert costs.values["kv_cache_memory"].tolist() == [
        [0.0, 0.0],
        [4 * 1000 * 2 * 1.0, 4 * 1000 * 2 * 2.0],
        [4 * 1000 * 2 * 1.0, 4 * 1000 * 2 * 2.0],
    ]
    assert costs.baseline == {"kv_cache_memory": 8 * 1000 * 2 * 4.0}
    per_token = mp.price(Attention(), TOKENS, menu, resources=["kv_cache_memory"])
    assert per_token.values["kv_cache_memory"][1].tolist() == [4.0, 8.0]


def test_queries_keys_and_values_in_one_product_are_told_apart_when_equal() -> None:
    class Fused(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, outputs)

        def forward(self, x):
            return self.qkv(x)

    costs = mp.price(Fused(24), TOKENS, ["w4a8"], resources=["kv_cache_memory"])
    assert costs.values["kv_cache_memory"].tolist() == [[16.0]]
    with pytest.raises(InputError, match="qkv makes queries, keys and values together"):
        mp.price(Fused(16), TOKENS, ["w4a8"], resources=["kv_cache_memory"])


def test_a_model_without_attention_has_no_cache_to_price() -> None:
    with pytest.raises(InputError, match="no layer is named"):
        mp.price(nn.Linear(8, 8), TOKENS, ["w4a8"], resources=["kv_cache_memory"])


def test_adders_follow_the_formula_and_cover_integers_only() -> None:
    menu = ["w4a8", "float", "w:mxfp4/a:int8"]
    costs = mp.price(nn.Linear(8, 4), TOKENS, menu, resources=["bops_adders"])
    macs = 3 * 8 * 4
    adders = lambda w, a: (5 * w * a - 5 * w - 3 * a + 3) + (3 * w + 3 * a + 29)  # noqa: E731
    table = costs.values["bops_adders"]
    assert table[0, :2].tolist() == [macs * adders(4, 8), macs * adders(32, 32)]
    assert torch.tensor(table[0, 2]).isnan()


def test_an_option_without_a_price_is_left_out_only_where_the_price_matters() -> None:
    menu = ["w4a8", "w:mxfp4/a:int8"]
    costs = mp.price(nn.Linear(8, 4), TOKENS, menu, resources=["bops_adders", "weight_memory"])
    profile = mp.Profile.from_arrays([[1.0, 0.0]], groups=costs.groups, options=menu)
    free = mp.allocate(profile, costs, {"weight_memory": "1x"})
    assert list(free.groups.values()) == ["w:mxfp4/a:int8"]
    assert "bops_adders" not in free.costs
    priced = mp.allocate(profile, costs, {"bops_adders": "1x"})
    assert list(priced.groups.values()) == ["w4a8"]


def test_unknown_resources_and_empty_workloads_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="kv_cache_memory"):
        mp.price(nn.Linear(8, 4), TOKENS, ["w4a8"], resources=["kv_cache"])
    with pytest.raises(InputError, match="batch 0"):
        mp.price(nn.Linear(8, 4), TOKENS, ["w4a8"], batch=0)
    with pytest.raises(InputError, match="context 0"):
        mp.price(nn.Linear(8, 4), TOKENS, ["w4a8"], context=0)


def test_a_budget_prices_what_is_not_priced_by_default() -> None:
    answer = mp.search(
        Attention(),
        (TOKENS, torch.zeros(2, dtype=torch.long)),
        ["w8a4", "w8a8"],
        {"kv_cache_memory": "5 B", "activation_memory": "1x"},
        estimator="sqnr",
        loss="mse",
        verified=False,
    )
    assert answer.budgets["kv_cache_memory"].usage <= 5
