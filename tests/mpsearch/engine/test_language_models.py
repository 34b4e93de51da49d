"""The engine on language models of the transformers library, tiny and untrained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.engine.calibration import calibrate
from mpsearch.engine.meter import AllocationMeter
from mpsearch.engine.quantizer import Quantizer
from mpsearch.formats import get, parse_option
from mpsearch.losses import as_loss, measure
from mpsearch.models.layers import find_layers

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, intermediate_size=24, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        **SIZES, intermediate_size=24, num_key_value_heads=2, num_local_experts=4
    )
    return transformers.MixtralForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def prepared(make: Any) -> tuple[nn.Module, list[str], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = make().eval()
    batches = [(ids, ids) for ids in torch.randint(0, 40, (6, 9)).split(3)]
    layers = [layer.name for layer in find_layers(model, batches[0]).layers]
    return model, layers, batches


@pytest.mark.parametrize("make", [llama, mixtral, gpt2])
def test_changes_with_a_key_value_cache_give_the_bits_of_a_full_run(make: Any) -> None:
    model, layers, batches = prepared(make)
    assert model.config.use_cache
    quantizer = Quantizer(model, calibrate(model, layers, batches))
    loss = as_loss("next_token")
    meter = AllocationMeter(quantizer, batches, loss)
    reference = measure(model, batches, loss)
    assert meter.measure({}) == reference
    for layer in layers:
        choice = {layer: parse_option("w3a6")}
        found = meter.measure(choice)
        with quantizer.options(choice):
            assert found == measure(model, batches, loss)
        assert found != reference
    assert not meter.notes


def test_gpt2_weights_have_a_scale_per_column() -> None:
    model, _, _ = prepared(gpt2)
    name = "transformer.h.0.mlp.c_fc"
    weight = model.get_parameter(f"{name}.weight")
    expected = get("int4").fake_quantize(weight.detach().T.contiguous(), 0).T
    assert torch.equal(Quantizer(model, {}).weight(name, get("int4")), expected)


def test_a_causal_model_is_applied_and_measured_like_any_other() -> None:
    model, layers, batches = prepared(llama)
    ids = torch.cat([inputs for inputs, _ in batches])
    loss = as_loss("next_token")
    reference = measure(model, batches, loss)
    assert reference.metric is not None
    near = measure(mp.apply(model, dict.fromkeys(layers, "w8a8"), ids), batches, loss)
    far = measure(mp.apply(model, dict.fromkeys(layers, "w2a4"), ids), batches, loss)
    assert abs(near.loss - reference.loss) < abs(far.loss - reference.loss)
