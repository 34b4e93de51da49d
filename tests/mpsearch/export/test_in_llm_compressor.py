"""llm-compressor itself applies an exported recipe, and reports what we asked for."""

from __future__ import annotations

import pytest
import torch

from mpsearch.export import export
from mpsearch.formats import Integer, parse_option
from tests.mpsearch.export.environments import interpreter, report
from tests.mpsearch.export.test_in_auto_round import small_decoder

OPTIONS = [
    *("w8", "w8", "w8", "w4", "int4_g32", "int4_g32", "int4_asym_g32"),
    *("w3", "w3", "w3", "fp8_e4m3", "float", "float", "w2", "float"),
]


@pytest.mark.slow
def test_llm_compressor_gives_every_layer_what_was_asked(tmp_path):
    interpreter("llm-compressor", "llmcompressor")
    model = small_decoder(tmp_path / "model")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    layers = dict(zip(names, OPTIONS, strict=True))
    path = tmp_path / "recipe.yaml"
    export(layers, "llm-compressor", path)
    found = report(
        "llm-compressor", "llmcompressor", "llm_compressor_report.py", tmp_path / "model", path
    )
    for layer, text in layers.items():
        spec, said = parse_option(text).weight, found[layer]
        if spec.is_float:
            assert said is None, layer
            continue
        assert said["num_bits"] == spec.bits, layer
        assert said["type"] == ("int" if isinstance(spec, Integer) else "float"), layer
        assert said["strategy"] == ("group" if spec.block else "channel"), layer
        assert said["group_size"] == spec.block
        assert said["symmetric"] == (not (isinstance(spec, Integer) and spec.asymmetric))
