"""`mpsearch export` and `mpsearch search --target` as a user calls them."""

from __future__ import annotations

import json

import pytest

from mpsearch.export import known_targets, read
from mpsearch.formats import parse_option
from mpsearch.schemas import Allocation

pytest.importorskip("sklearn")


@pytest.fixture
def saved(tmp_path):
    """An allocation of the example network."""
    layers = {
        "conv1": "w8a8",
        "layer1.0.conv1": "w4a8",
        "layer1.0.conv2": "w8a8",
        "fc": "w8a8",
    }
    answer = Allocation(
        layers=layers,
        groups=layers,
        status="feasible",
        objective=0.0,
        bound=None,
        gap=None,
        predicted_loss=0.0,
        method="given",
        solver="none",
        seconds=0.0,
        estimator="given",
    )
    folder = tmp_path / "out"
    answer.save(folder / "allocation.json")
    return folder


def test_list_names_every_target_and_what_it_needs(run):
    result = run("export", "--list")
    assert result.code == 0
    assert result.out == ""
    for target in known_targets():
        assert target.name in result.err
    assert "onnxruntime>=1.20" in result.message


def test_list_as_json_says_what_needs_the_model(run):
    listed = {entry["name"]: entry for entry in run("export", "--list", "--json").json}
    assert [name for name, entry in listed.items() if entry["needs_model"]] == [
        "onnxruntime",
        "tensorrt",
        "compressed-tensors",
    ]
    assert "linear" in listed["torchao"]["kinds"]
    assert listed["json"]["expresses"] == ["every option"]


def test_a_folder_of_a_search_or_its_file_is_exported(run, saved, tmp_path):
    asked = Allocation.load(saved / "allocation.json").layers
    for given in (saved, saved / "allocation.json"):
        out = tmp_path / "quant_cfg.py"
        result = run("export", given, "--to", "modelopt", "--out", out)
        assert result.code == 0
        assert "calibrated again" in result.message
        assert read(out, "modelopt") == asked
    result = run("export", saved, "--to", "csv", "--out", tmp_path / "a.csv", "--json")
    assert result.json["files"] == ["a.csv"]


def test_what_a_target_cannot_express_exits_2_and_names_it(run, saved, tmp_path):
    result = run("export", saved, "--to", "gguf", "--out", tmp_path / "types.txt")
    assert result.code == 2
    assert "gguf cannot express 4 of 4 layers" in result.message
    assert "layer1.0.conv1: w4a8" in result.message
    assert "int4_g32" in result.message
    assert not (tmp_path / "types.txt").exists()


def test_kinds_without_words_exit_2_when_the_model_is_given(run, saved, tmp_path):
    words = ("export", saved, "--to", "torchao", "--out", tmp_path / "config.json")
    assert run(*words).code == 2  # w4a8: symmetric activations under 4-bit weights
    flat = json.loads((saved / "allocation.json").read_text())
    flat["layers"] = dict.fromkeys(flat["layers"], "w8a8")
    (saved / "allocation.json").write_text(json.dumps(flat))
    assert run(*words).code == 0
    result = run(*words, "--model", "digits-resnet", "--data", "digits")
    assert result.code == 2
    assert "conv1: w8a8 (it is a conv2d" in result.message
    assert "nearest: float" in result.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give RESULT, --to TARGET and --out FILE"),
        (("--to", "tensort", "--out", "x"), "did you mean tensorrt"),
        (("--to", "onnxruntime", "--out", "x.onnx"), "--model and --data"),
        (("--to", "json", "--out", "x", "--model", "digits-resnet"), "go together"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_to_give(run, saved, words, message):
    result = run("export", saved, *words)
    assert result.code == 2
    assert message in result.message


@pytest.mark.slow
def test_a_search_for_a_target_offers_only_what_it_can_run(run, tmp_path):
    out = tmp_path / "out"
    common = ("search", "digits-resnet", "--data", "digits", "--estimator", "sqnr", "--no-verify")
    result = run(*common, "--target", "onnxruntime", "-b", "weight_memory=0.14x", "--out", out)
    assert result.code == 0
    assert "left out, onnxruntime cannot express them: w3a8, w6a8" in result.message
    model = tmp_path / "model.onnx"
    words = ("export", out, "--to", "onnxruntime", "--out", model)
    pytest.importorskip("onnxscript")
    written = run(*words, "--model", "digits-resnet", "--data", "digits")
    assert written.code == 0
    asked = Allocation.load(out / "allocation.json").layers
    found = read(model, "onnxruntime")
    assert {n: parse_option(o).key for n, o in found.items()} == {
        n: parse_option(o).key for n, o in asked.items()
    }


@pytest.mark.slow
def test_layers_that_a_target_has_no_words_for_stay_float(run, tmp_path):
    out = tmp_path / "out"
    result = run(
        *("search", "digits-resnet", "--data", "digits", "--estimator", "sqnr", "--no-verify"),
        *("--target", "gguf", "-b", "average_bits=9", "--out", out),
    )
    assert result.code == 0
    # Convolutions are not part of the problem, so they stay as they are.
    assert Allocation.load(out / "allocation.json").layers == {"fc": "int8_g32"}
    refused = run(
        *("search", "digits-resnet", "--data", "digits", "--target", "gguf"),
        *("--options", "w3a8,w5a8", "-b", "average_bits=9"),
    )
    assert refused.code == 2
    assert "gguf can express none of w3a8, w5a8" in refused.message
