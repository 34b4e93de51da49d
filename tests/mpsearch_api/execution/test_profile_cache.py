"""What a cached profile depends on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mpsearch.menu import Wishes
from mpsearch.models.dataset import DataSet
from mpsearch.models.named import NamedModel
from mpsearch.schemas import Profile
from mpsearch.schemas.jobs import JobRequest
from mpsearch_api.execution.profile_cache import Content, DocumentCache


def _content(**changed: object) -> Content:
    torch.manual_seed(0)
    request = {"model": "m", "data": "d", "budget": {"bops": "3%"}} | changed.pop("request", {})
    content = Content(
        NamedModel("m", nn.Sequential(nn.Linear(3, 4), nn.ReLU())),
        DataSet("d", torch.arange(6.0).reshape(2, 3)),
        JobRequest(**request),
        Wishes(),
    )
    return replace(content, **changed)


CHANGES = [
    {"request": {"options": ["w4a8"]}},
    {"request": {"estimator": "hessian_trace"}},
    {"request": {"settings": {"probes": 3}}},
    {"request": {"loss": "mse"}},
    {"request": {"seed": 1}},
    {"wishes": Wishes(group=["0"])},
    {"wishes": Wishes(fix={"0": "w4a8"})},
    {"wishes": Wishes(skip=["0"])},
    {"wishes": Wishes(proposed=[["0", "1"]])},
    {"data": DataSet("d", torch.arange(6.0).reshape(2, 3) + 1)},
    {"data": DataSet("d", torch.arange(6.0).reshape(2, 3), batch_size=1)},
    {"named": NamedModel("m", nn.Sequential(nn.Linear(3, 4), nn.Tanh()))},
    {"named": NamedModel("m", nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double())},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_profile_is_used_again_only_for_the_very_same_content(change) -> None:
    assert _content(**change).profile_key() != _content().profile_key()


@pytest.mark.parametrize(
    "change",
    [
        {"budget": {"weight_memory": "0.5x"}},
        {"solver": {"gap": 0.1}},
        {"verify": False},
        {"label": "another"},
        {"hardware": "nvidia-t4"},
    ],
    ids=str,
)
def test_budgets_solvers_and_hardware_leave_a_profile_as_it_is(change) -> None:
    assert _content(request=change).profile_key() == _content().profile_key()


def test_prices_depend_on_hardware_resources_and_batch() -> None:
    keys = {
        _content().costs_key(None, None),
        _content().costs_key("{}", None),
        _content().costs_key(None, ["bops"]),
        _content(request={"batch": 2}).costs_key(None, None),
        _content(request={"context": 2}).costs_key(None, None),
        _content().profile_key(),
    }
    assert len(keys) == 6
    # Neither estimator nor seed matters to prices.
    other = _content(request={"estimator": "fisher", "seed": 3})
    assert other.costs_key(None, None) == _content().costs_key(None, None)


def test_documents_come_back_and_broken_ones_do_not(tmp_path) -> None:
    cache = DocumentCache(tmp_path)
    profile = Profile.from_arrays([[1.0, 2.0]])
    assert cache.load(Profile, "k") is None
    cache.save(profile, "k")
    assert cache.load(Profile, "k").model_dump_json() == profile.model_dump_json()
    assert cache.load(Profile, "l") is None
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(path.read_bytes()[:-20])
    assert cache.load(Profile, "k") is None
