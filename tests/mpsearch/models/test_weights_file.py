from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models.weights_file import check_finite, load_weights


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(make_model().state_dict(), path)
    return path


def test_weights_come_back_as_they_were_saved(saved) -> None:
    model = make_model()
    with torch.no_grad():
        model[0].weight.zero_()
    load_weights(model, saved)
    assert all(
        torch.equal(tensor, make_model().state_dict()[name])
        for name, tensor in model.state_dict().items()
    )


def test_missing_unexpected_and_misshaped_tensors_are_all_named(saved, tmp_path) -> None:
    state = make_model().state_dict()
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(2, 4)
    path = tmp_path / "other.safetensors"
    save_file(state, path)
    model = make_model()
    with pytest.raises(ModelError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert "missing 0.bias" in message
    assert "unexpected extra" in message
    assert "0.weight has shape (2, 4), the model wants (2, 3)" in message
    assert torch.equal(model[0].weight, make_model()[0].weight)


def test_nan_weights_are_refused_before_the_model_is_touched(tmp_path) -> None:
    state = make_model().state_dict()
    state["0.weight"][0, 0] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_file(state, path)
    model = make_model()
    with pytest.raises(ModelError, match=r"0\.weight"):
        load_weights(model, path)
    assert torch.isfinite(model[0].weight).all()


def test_a_missing_file_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(ModelError, match="no weights file"):
        load_weights(make_model(), tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02cos\nsystem\n",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 90)
        + json.dumps({"0.weight": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})
        .ljust(90)
        .encode(),
    ],
)
def test_what_is_not_safetensors_is_refused(tmp_path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        load_weights(make_model(), path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_load_finite_weights(
    tmp_path_factory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "w.safetensors"
    save_file(make_model().state_dict(), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    model = make_model()
    try:
        load_weights(model, path)
    except ModelError:
        return
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())


def test_a_tied_weight_that_the_file_names_once_is_loaded_under_both_names(tmp_path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 3, bias=False), "b": nn.Linear(2, 3, bias=False)})
    model["b"].weight = model["a"].weight
    path = tmp_path / "tied.safetensors"
    save_file({"b.weight": torch.full((3, 2), 7.0)}, path)
    load_weights(model, path)
    assert model["a"].weight is model["b"].weight
    assert model["a"].weight.unique().tolist() == [7.0]
    save_file({"c.weight": torch.zeros(3, 2)}, path)
    with pytest.raises(ModelError, match=r"missing a\.weight; missing b\.weight; unexpected c"):
        load_weights(model, path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_nan_is_found_in_every_float_type(dtype: torch.dtype) -> None:
    check_finite({"w": torch.ones(2).to(dtype)}, "here")
    with pytest.raises(ModelError, match="NaN or infinite values in 1 tensors: w"):
        check_finite({"w": torch.tensor([1.0, float("nan")]).to(dtype)}, "here")
