from __future__ import annotations

import json

import numpy as np
import pytest

from mpsearch.cli.loading import load
from mpsearch.errors import DataError, InputError
from mpsearch.menu import Wishes


def test_the_groups_of_the_target_join_the_wishes() -> None:
    loaded = load("digits-resnet", "digits", Wishes(skip=["fc"]), groups_for="integer-only")
    assert loaded.wishes.skip == ["fc"]
    assert loaded.wishes.proposed == (
        ("conv1", "layer1.0.conv2"),
        ("layer2.0.conv2", "layer2.0.downsample.0"),
        ("layer3.0.conv2", "layer3.0.downsample.0"),
    )


def test_samples_are_drawn_by_the_seed() -> None:
    first, again, other = (
        load("digits-resnet", "digits", samples=10, seed=seed).data for seed in (1, 1, 2)
    )
    assert len(first) == 10
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.held_out_inputs is not None
    assert len(first.held_out_inputs) == 719


def test_data_that_does_not_fit_is_refused_before_anything_is_scored(tmp_path) -> None:
    images = np.zeros((2, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "d.npz", images)
    with pytest.raises(DataError, match=r"takes float32 values \[n, 1, 8, 8\]"):
        load("digits-resnet", str(tmp_path / "d.npz"))
    np.savez(tmp_path / "d.npz", x=images[:, :1], y=np.array([3, 10]))
    with pytest.raises(DataError, match="label 10, but digits-resnet has 10 classes"):
        load("digits-resnet", str(tmp_path / "d.npz"))


def test_an_archive_is_refused_unless_it_is_trusted(tmp_path) -> None:
    with pytest.raises(InputError, match="trusted"):
        load(str(tmp_path / "model.pt2"), "digits")


def test_synthetic_data_is_called_data_free_wherever_it_shows(tmp_path) -> None:
    from typer.testing import CliRunner

    from mpsearch.cli.app import app

    arguments = [
        *("search", "digits-resnet", "--data", "synthetic?count=8&steps=3"),
        *("--options", "w4a8,w8a8", "--budget", "weight_memory=0.2x", "--loss", "kl_to_float"),
        *("--groups-for", "integer-only", "--out", str(tmp_path / "out"), "--json"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    profile = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert any("data-free" in warning for warning in profile["warnings"])
    assert "data-free" in profile["data"]["name"]
    answer = json.loads((tmp_path / "out" / "allocation.json").read_text())
    assert "data-free" in answer["verification"]["data"]["name"]
    assert answer["layers"]["conv1"] == answer["layers"]["layer1.0.conv2"]
    assert "data-free" in done.output
