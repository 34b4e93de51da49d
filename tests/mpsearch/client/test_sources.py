from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mpsearch.client.sources import (
    as_source,
    data_source,
    local_data,
    local_hardware,
    local_model,
    sha256_of,
)
from mpsearch.errors import DataError, InputError


def arrays_of(source) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(source.read(0, source.size))))


def test_files_and_bytes_are_read_in_parts_and_hashed(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    for source in (as_source(path, None), as_source(content, "net.onnx")):
        assert (source.name, source.size) == ("net.onnx", len(content))
        assert source.read(5, 7) == content[5:12]
        assert source.read(len(content) - 2, 7) == content[-2:]
        assert sha256_of(source) == hashlib.sha256(content).hexdigest()


def test_a_file_that_changes_during_its_upload_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"one")
    source = as_source(path, None)
    path.write_bytes(b"three")
    with pytest.raises(InputError, match="changed while"):
        source.read(0, 3)


@pytest.mark.parametrize("content", [b"", None])
def test_what_is_empty_or_not_there_is_refused(tmp_path: Path, content) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"net\.onnx is empty|No such file"):
        as_source(path, None)


def test_folders_and_nameless_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is no file"):
        as_source(tmp_path, None)
    with pytest.raises(InputError, match="bytes need a name"):
        as_source(b"abc", None)


def test_arrays_become_a_data_file_with_their_roles() -> None:
    inputs, targets = np.ones((2, 3), np.float32), [0, 1]
    assert list(arrays_of(data_source(inputs, None))) == ["inputs"]
    pair = arrays_of(data_source((torch.from_numpy(inputs), targets), None))
    assert set(pair) == {"inputs", "targets"}
    np.testing.assert_array_equal(pair["inputs"], inputs)
    named = data_source({"inputs": inputs, "held_out_inputs": inputs}, "mine.npz")
    assert named.name == "mine.npz"
    assert set(arrays_of(named)) == {"inputs", "held_out_inputs"}


@pytest.mark.parametrize("data", [None, object(), ["a", "b"], np.zeros((0, 3)), {"inputs": {}}])
def test_what_holds_no_numbers_is_refused(data) -> None:
    with pytest.raises(DataError, match="give arrays of numbers"):
        data_source(data, None)


def test_names_that_the_service_knows_are_left_to_it() -> None:
    for name in ("digits-resnet", "mdl_01", "torchvision:resnet18", "digits-resnet@mdl_01"):
        assert local_model(name) is None
    for name in ("digits", "dat_01", "synthetic?count=4", "images:dat_01?size=224"):
        assert local_data(name) is None
    for name in ("nvidia-t4", "hw_01"):
        assert local_hardware(name) is None


def test_files_are_told_from_names_by_their_form(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.pt2", "w.safetensors", "d.npz", "t.csv", "t.json", "odd@x.onnx"):
        (tmp_path / name).write_bytes(b"x")
    assert local_model(str(tmp_path / "net.onnx")).source.name == "net.onnx"
    assert local_model(tmp_path / "odd@x.onnx").source.name == "odd@x.onnx"
    weights = local_model(f"torchvision:resnet18@{tmp_path / 'w.safetensors'}")
    assert (weights.architecture, weights.source.name) == ("torchvision:resnet18", "w.safetensors")
    assert local_data(str(tmp_path / "d.npz")).name == "d.npz"
    assert local_data(tmp_path / "w.safetensors").name == "w.safetensors"
    assert local_hardware(str(tmp_path / "t.csv")).name == "t.csv"


def test_a_local_file_that_is_not_there_or_lacks_its_architecture_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        local_model("digits-resnet@missing.safetensors")
    with pytest.raises(InputError, match="ARCHITECTURE@w"):
        local_model(str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match="settings after"):
        local_data("data.npz?batch=4")
