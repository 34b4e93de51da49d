"""NVIDIA ModelOpt itself applies an exported quant_cfg, and reports what we asked for."""

from __future__ import annotations

import pytest

from mpsearch.export import export
from mpsearch.formats import Integer, parse_option
from mpsearch.models.digits import digits_resnet
from mpsearch.models.kinds import weight_sites
from mpsearch.quantize import layer_weight
from tests.mpsearch.export.environments import report

OPTIONS = [
    *("w8a8", "w4a8", "w3a8", "w2a4", "float", "w8", "w6a6"),
    *("w:fp8_e4m3_tensor/a:fp8_e4m3", "w:int8_tensor/a:int8", "w:int4_g16/a:float"),
]


@pytest.mark.slow
def test_modelopt_gives_every_layer_of_a_real_model_what_was_asked(tmp_path):
    pytest.importorskip("sklearn")
    model = digits_resnet()
    layers = dict(zip(weight_sites(model).by_name, OPTIONS, strict=True))
    path = tmp_path / "quant_cfg.py"
    export(layers, "modelopt", path, model=model, data="digits")
    found = report("modelopt", "modelopt", "modelopt_report.py", "digits-resnet", "digits", path)
    assert set(found) == set(layers)
    for layer, text in layers.items():
        option, said = parse_option(text), found[layer]
        for part, spec in (("weight", option.weight), ("input", option.activation)):
            assert said[part]["on"] == (not spec.is_float), layer
            if spec.is_float:
                continue
            bits = spec.width if isinstance(spec, Integer) else [4, 3]
            assert said[part]["num_bits"] == bits, layer
            assert said[part]["blocks"].get("-1") == spec.block, layer
            if part == "weight" and spec.block is None:
                assert said[part]["axis"] == (None if spec.per_tensor else 0), layer
            if part == "input":
                assert said[part]["amax"] > 0
        if isinstance(option.weight, Integer):
            ours = option.weight.fake_quantize(layer_weight(model, layer))
            assert said["sum"] == pytest.approx(float(ours.double().abs().sum()), rel=1e-5), layer
            if option.weight.block is None:
                assert said["levels"] <= 2**option.weight.width
