"""Every target of text: what is written is read back as the same allocation."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.errors import DocumentError, InputError
from mpsearch.export import export, find_target, known_targets, read, render
from mpsearch.formats import parse_option

TEXTS = [target for target in known_targets() if not target.needs_model]
DECODER = [
    "model.embed_tokens",
    "model.layers.0.self_attn.o_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.11.mlp.down_proj",
    "lm_head",
]
RESNET = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv2", "layer4.1.conv3", "fc"]


def names_for(target: str) -> list[str]:
    return RESNET if target == "hawq" else DECODER


@pytest.mark.parametrize("target", TEXTS, ids=lambda target: target.name)
@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_any_offered_mix_survives_the_round_trip(tmp_path_factory, target, draw):
    names = names_for(target.name)
    options = draw.draw(
        st.lists(st.sampled_from(target.offers), min_size=len(names), max_size=len(names))
    )
    asked = dict(zip(names, options, strict=True))
    path = tmp_path_factory.mktemp("export") / f"file{target.suffix}"
    export(asked, target.name, path)
    found = read(path, target.name)
    assert {layer: parse_option(o).key for layer, o in found.items()} == {
        layer: parse_option(o).key for layer, o in asked.items()
    }
    assert render(asked, target.name).content == path.read_bytes()


@pytest.mark.parametrize("target", TEXTS, ids=lambda target: target.name)
def test_a_file_that_is_something_else_is_refused_with_a_reason(tmp_path, target):
    path = tmp_path / "other"
    path.write_text('{"hello": 1}\n')
    if target.name == "csv":
        path.write_text("a,b\n1,2\n")
    with pytest.raises(DocumentError, match=r"no export to|cannot read"):
        read(path, target.name)
    with pytest.raises(DocumentError, match="cannot read"):
        read(tmp_path / "missing", target.name)


def test_hawq_names_are_those_of_its_bit_config():
    # From HAWQ's bit_config.py: "bit_config_resnet18_modelsize_0.75", stage 3 unit 2.
    layers = {
        "layer3.1.conv1": "w8a8",
        "layer3.1.conv2": "w4a4",
        "layer2.0.downsample.0": "w8a8",
        "conv1": "w8a8",
        "fc": "w8a8",
    }
    text = render(layers, "hawq").content.decode()
    space: dict[str, dict[str, dict[str, int]]] = {}
    exec(text, space)
    bits = space["bit_config_dict"]["bit_config_allocation"]
    assert bits["stage3.unit2.quant_convbn1"] == 8
    assert bits["stage3.unit2.quant_act1"] == 4
    assert bits["stage3.unit2.quant_convbn2"] == 4
    assert bits["stage2.unit1.quant_identity_convbn"] == 8
    assert bits["stage3.unit2.quant_act_int32"] == 16
    assert bits["quant_input"] == bits["quant_act_output"] == 8


def test_hawq_refuses_two_widths_for_one_activation():
    layers = {"layer2.0.conv1": "w4a4", "layer2.0.downsample.0": "w8a8"}
    with pytest.raises(InputError, match=r"downsample\.0.*Nearest: w8a4"):
        render(layers, "hawq")


def test_gguf_arguments_name_the_tensors_of_llama_cpp():
    layers = {"model.layers.3.self_attn.q_proj": "int4_g32", "lm_head": "int8_g32"}
    assert render(layers, "gguf").content.decode().splitlines() == [
        r"--tensor-type '^blk\.3\.attn_q\.weight$=q4_0'",
        r"--tensor-type '^output\.weight$=q8_0'",
    ]


@pytest.mark.parametrize("target", ["gguf", "hawq"])
def test_unknown_layer_names_are_named(target):
    option = find_target(target).offers[0]
    with pytest.raises(InputError, match="somewhere"):
        render({"somewhere.else": option}, target)


def test_json_spells_the_formats_out():
    document = json.loads(render({"a": "w:int4_asym_g32/a:int8"}, "json").content)
    weight = document["layers"]["a"]["weight"]
    assert weight == {
        "format": "int4_asym_g32",
        "bits": 4,
        "scale_bits": 20,
        "scale_per": "group of 32",
        "zero_point": True,
    }
