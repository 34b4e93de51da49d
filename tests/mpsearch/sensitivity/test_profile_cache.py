from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.menu import Wishes
from mpsearch.sensitivity.measured import MeasuredLoss


@pytest.fixture
def runs(net):
    seen = []
    net.register_forward_hook(lambda *_: seen.append(1))
    return seen


def scored(net, data, folder, **changes):
    given = {"options": ["w3", "w4"], "estimator": "ggn_trace", "seed": 0, **changes}
    return mp.profile(net, data, cache_dir=folder, **given)


def test_a_second_run_is_loaded_bit_for_bit(net, data, tmp_path, runs):
    first = scored(net, data, tmp_path)
    count = len(runs)
    again = scored(net, data, tmp_path)
    assert len(runs) == count
    assert again.model_dump_json() == first.model_dump_json()


@pytest.mark.parametrize(
    "change",
    [
        {"options": ["w3", "w5"]},
        {"estimator": "fisher_output"},
        {"seed": 1},
        {"draws": 6},
        {"loss": "mse"},
        {"wishes": Wishes(skip=["head"])},
    ],
)
def test_anything_that_changes_the_scores_is_scored_anew(net, data, exact, tmp_path, runs, change):
    scored(net, data, tmp_path)
    count = len(runs)
    if change.get("loss") == "mse":
        one_hot = nn.functional.one_hot(exact.targets, 3).double()
        data = mp.DataSet("random", exact.inputs, one_hot, batch_size=5)
    scored(net, data, tmp_path, **change)
    assert len(runs) > count


def test_other_weights_and_other_data_are_scored_anew(net, data, exact, tmp_path, runs):
    first = scored(net, data, tmp_path)
    fewer = mp.DataSet("random", exact.inputs[:8], exact.targets[:8], batch_size=5)
    assert not np.array_equal(scored(net, fewer, tmp_path).loss, first.loss)
    with torch.no_grad():
        net.head.weight[0, 0] += 0.1
    assert not np.array_equal(scored(net, data, tmp_path).loss, first.loss)


def test_estimators_without_a_name_are_not_kept(net, data, tmp_path):
    scored(net, data, tmp_path, estimator=MeasuredLoss())
    assert not (tmp_path / "profiles").exists()


@pytest.mark.parametrize("content", ["", "{}", "[[[", '{"version": 99}'])
def test_a_broken_profile_is_named_and_scored_again(net, data, tmp_path, content):
    first = scored(net, data, tmp_path)
    (file,) = (tmp_path / "profiles").glob("*.json")
    file.write_text(content)
    with pytest.warns(RuntimeWarning, match=file.name):
        again = scored(net, data, tmp_path)
    assert np.array_equal(again.loss, first.loss)
    assert np.array_equal(mp.Profile.load(file).loss, first.loss)
