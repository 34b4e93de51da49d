"""Files that the caller of a spec hands in, named `upload:NAME` and never by their path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.models.digits import digits_resnet
from mpsearch.models.registry import as_data, as_model
from mpsearch.models.specs import SpecPolicy


@pytest.fixture
def store(tmp_path) -> Path:
    """A folder whose files are called by their content, as a service keeps them."""
    folder = tmp_path / "secret-store"
    folder.mkdir()
    return folder


def test_uploaded_weights_go_into_the_declared_architecture(store) -> None:
    wanted = digits_resnet()
    with torch.no_grad():
        wanted.fc.bias.fill_(3.0)
    save_file(wanted.state_dict(), store / "9f2c")
    policy = SpecPolicy(files={"mine.safetensors": store / "9f2c"})
    named = as_model("digits-resnet@upload:mine.safetensors", policy)
    assert torch.equal(named.module.fc.bias, wanted.fc.bias)
    assert named.name == "digits-resnet@upload:mine.safetensors"


def test_the_type_of_an_uploaded_model_is_told_by_its_name(store) -> None:
    pytest.importorskip("onnx2torch")
    torch.onnx.export(
        digits_resnet(), (torch.zeros(2, 1, 8, 8),), store / "41aa", dynamo=False, verbose=False
    )
    named = as_model("upload:net.onnx", SpecPolicy(files={"net.onnx": store / "41aa"}))
    assert named.module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert all("41aa" not in note for note in named.notes)


def test_uploaded_data_takes_settings_like_a_path_does(store) -> None:
    with (store / "77").open("wb") as file:
        np.savez(file, inputs=np.zeros((5, 3), dtype=np.float32), targets=np.arange(5))
    data = as_data("upload:d.npz?batch=2", SpecPolicy(files={"d.npz": store / "77"}))
    assert (len(data), data.batch_size) == (5, 2)
    assert data.name == "upload:d.npz"


def test_files_that_were_handed_in_allow_no_other_path(store) -> None:
    (store / "77").write_bytes(b"")
    policy = SpecPolicy(files={"d.npz": store / "77"})
    for spec in (str(store / "77"), "upload:../77", f"upload:{store / '77'}"):
        with pytest.raises(InputError):
            as_data(f"{spec}.npz", policy)
    with pytest.raises(InputError, match="not allowed here"):
        as_data("/etc/passwd.npz", policy)
    with pytest.raises(UnknownNameError, match=r"unknown uploaded file 'e\.npz'"):
        as_data("upload:e.npz", policy)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("digits-resnet@upload:m.safetensors", "m.safetensors"),
        ("upload:m.onnx", "m.onnx"),
        ("upload:m.pt2", "m.pt2"),
        ("transformers:upload:folder", "folder"),
    ],
)
def test_errors_call_an_uploaded_model_by_its_name(store, spec: str, name: str) -> None:
    (store / "0bad").write_bytes(b"nothing of any format")
    policy = SpecPolicy(files={name: store / "0bad"}, trusted=True)
    with pytest.raises(InputError, match=f"upload:{name}") as caught:
        as_model(spec, policy)
    assert str(store) not in str(caught.value)


@pytest.mark.parametrize("form", ["upload:{}", "images:upload:{}", "text:upload:{}?tokenizer=x"])
def test_errors_call_uploaded_data_by_its_name(store, form: str) -> None:
    (store / "0bad").write_bytes(b"\xff nothing of any format")
    policy = SpecPolicy(files={"d.npz": store / "0bad"})
    with pytest.raises(InputError, match=r"upload:d\.npz") as caught:
        as_data(form.format("d.npz"), policy)
    assert str(store) not in str(caught.value)
