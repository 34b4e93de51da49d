"""compressed-tensors itself loads an exported checkpoint of a trained sentence encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import InputError, ModelError
from mpsearch.export import export, read
from mpsearch.export.targets.compressed_checkpoint import pack_codes
from mpsearch.formats import Integer, parse_option
from mpsearch.models.dataset import DataSet
from tests.mpsearch.engine.trained_models import SentenceEncoder, documents
from tests.mpsearch.export.environments import interpreter, report

OPTIONS = (
    *("w8a8", "w8", "w4", "float", "int4_g32", "w4a8", "w:int8/a:int8_asym"),
    *("fp8_e4m3", "w6", "w:fp8_e4m3/a:fp8_e4m3", "int8_tensor"),
)


def spread(model: nn.Module, options: tuple[str, ...]) -> dict[str, str]:
    """Give options in turn to the linear layers; query, key and value get one together."""
    layers: dict[str, str] = {}
    turns: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            last = name.rpartition(".")
            key = last[0] if last[2] in {"query", "key", "value"} else name
            turns.setdefault(key, options[len(turns) % len(options)])
            layers[name] = turns[key]
    return layers


def embedded(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    mask = (ids != 0)[..., None]
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@pytest.mark.slow
def test_embeddings_and_precisions_are_those_of_the_fake_quantized_encoder(tmp_path):
    interpreter("compressed-tensors", "compressed_tensors")
    from safetensors.torch import load_file, save_file

    model = SentenceEncoder().eval()
    ids = documents(64)[:8].contiguous()
    data = DataSet("documents", ids)
    layers = spread(model, OPTIONS)
    folder = tmp_path / "checkpoint"
    written = export(layers, "compressed-tensors", folder, model=model, data=data)
    assert written.files == ("config.json", "model.safetensors")
    assert {
        f"bert.{layer}": option for layer, option in read(folder, "compressed-tensors").items()
    }.keys() == layers.keys()
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    found = report(
        "compressed-tensors",
        "compressed_tensors",
        "compressed_tensors_report.py",
        folder,
        tmp_path / "ids.safetensors",
        tmp_path / "hidden.safetensors",
    )
    for layer, text in layers.items():
        option, said = parse_option(text), found[layer.removeprefix("bert.")]
        weight = option.weight
        if weight.is_float:
            assert said["weights"] is None
            continue
        assert said["weights"]["num_bits"] == weight.bits, layer
        assert said["weights"]["type"] == ("int" if isinstance(weight, Integer) else "float")
        strategy = "group" if weight.block else "tensor" if weight.per_tensor else "channel"
        assert said["weights"]["strategy"] == strategy, layer
        inputs = said["input_activations"]
        assert (inputs is None) == option.activation.is_float
        if inputs is not None:
            assert inputs["num_bits"] == option.activation.bits
            assert inputs["dynamic"] is False
        if isinstance(weight, Integer) and weight.block is None:
            assert said["levels"] < 2**weight.width
    with torch.no_grad():
        ours = mp.apply(model, layers, data)(ids)
    hidden = load_file(tmp_path / "hidden.safetensors")["hidden"]
    cosine = nn.functional.cosine_similarity(ours, embedded(hidden, ids))
    assert float(cosine.min()) >= 0.999


def test_the_checkpoint_holds_the_values_that_were_verified(tmp_path):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    data = DataSet("ids", torch.randint(0, 32, (4, 8)))
    layers = spread(model, ("w:int8/a:int8_asym", "w4", "int8_tensor", "fp8_e4m3"))
    folder = tmp_path / "checkpoint"
    written = export(layers, "compressed-tensors", folder, model=model, data=data)
    stored = load_file(folder / "model.safetensors")
    assert sum(written.sizes.values()) == (folder / "model.safetensors").stat().st_size
    for layer, text in layers.items():
        spec = parse_option(text).weight
        expected = spec.fake_quantize(model.get_submodule(layer).weight)
        if f"{layer}.weight_packed" in stored:
            words = stored[f"{layer}.weight_packed"].long() % 2**32
            per_word = 32 // spec.width
            places = torch.arange(per_word) * spec.width
            codes = (words[..., None] >> places) % 2**spec.width - 2 ** (spec.width - 1)
            codes = codes.reshape(len(words), -1)[:, : expected.shape[1]]
        else:
            codes = stored[f"{layer}.weight"]
        values = codes.float() * stored[f"{layer}.weight_scale"]
        assert torch.equal(values, expected), layer
    query = "encoder.layer.0.attention.self.query"
    assert stored[f"{query}.input_zero_point"].dtype == torch.int8
    assert float(stored[f"{query}.input_scale"]) > 0
    found = read(folder, "compressed-tensors")
    assert {layer: parse_option(o).key for layer, o in found.items()} == {
        layer: parse_option(o).key for layer, o in layers.items()
    }


def test_codes_are_packed_side_by_side():
    # Two's complement shifted by 8: -8 is nibble 0, 7 is nibble 15, the first one lowest.
    packed = pack_codes(torch.tensor([[-8, 7, 0, 1, -1, 2, -2, 3]]), 4)
    assert packed.tolist() == [[0xB6A798F0 - 2**32]]
    # Three bits: 11 codes take 33 bits, so the last one crosses into a second word.
    codes = torch.tensor([[-4, 3] * 5 + [3]])
    words = [word % 2**32 for word in pack_codes(codes, 3)[0].tolist()]
    stream = words[0] | words[1] << 32
    assert [(stream >> 3 * i) % 8 - 4 for i in range(11)] == codes[0].tolist()


def test_models_without_config_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ModelError, match="no model of transformers"):
        export(
            {"0": "w8"}, "compressed-tensors", tmp_path / "out", model=model, data=torch.ones(2, 8)
        )
    with pytest.raises(InputError, match="conv2d"):
        export(
            {"0": "w8"},
            "compressed-tensors",
            tmp_path / "out",
            model=nn.Sequential(nn.Conv2d(3, 4, 3)),
            data=torch.ones(2, 3, 8, 8),
        )
