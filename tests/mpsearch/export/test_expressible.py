"""What a target cannot express is refused by layer and option, with the nearest that it can."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.export import check_expressible, export, find_target, known_targets, objections
from mpsearch.formats import parse_option

NAMES = [target.name for target in known_targets()]
BITS = st.integers(1, 16)


@pytest.mark.parametrize("name", NAMES)
def test_everything_a_target_offers_it_can_express(name):
    target = find_target(name)
    assert target.offers
    assert all(target.expresses(parse_option(option)) for option in target.offers)


@given(name=st.sampled_from(NAMES), width=BITS, inputs=BITS)
def test_an_option_is_either_expressed_or_refused_with_expressible_neighbours(name, width, inputs):
    target = find_target(name)
    option = parse_option(f"w{width}a{inputs}")
    found = objections(target, {"layer": option})
    assert bool(found) != target.expresses(option)
    for each in found:
        assert each.layer == "layer"
        assert each.nearest
        assert all(target.expresses(parse_option(other)) for other in each.nearest)


def test_the_nearest_differs_least_in_bits():
    target = find_target("onnxruntime")
    assert target.nearest(parse_option("w3a8"))[:2] in (["w4a8", "w2a8"], ["w2a8", "w4a8"])
    assert find_target("gguf").nearest(parse_option("w4"))[0] == "int4_g32"


def test_the_message_names_layers_options_and_neighbours():
    layers = {"a": parse_option("w3a8"), "b": parse_option("w8a8"), "c": parse_option("w5")}
    with pytest.raises(InputError) as raised:
        check_expressible(find_target("onnxruntime"), layers)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert "2 of 3 layers" in message
    assert "a: w3a8" in message
    assert "c: w5" in message
    assert "b:" not in message
    assert "w4a8" in message


def test_long_lists_are_cut_and_counted():
    layers = {f"layer{i}": parse_option("w3a8") for i in range(40)}
    with pytest.raises(InputError, match="… and 28 more"):
        check_expressible(find_target("onnxruntime"), layers)


def test_layers_of_a_kind_without_words_may_stay_float():
    target = find_target("torchao")
    kinds = {"conv": "conv2d", "fc": "linear"}
    eight, left = parse_option("w8"), parse_option("float")
    assert not objections(target, {"conv": left, "fc": eight}, kinds)
    (found,) = objections(target, {"conv": eight, "fc": eight}, kinds)
    assert (found.layer, found.nearest) == ("conv", ("float",))
    assert "conv2d" in found.reason


def test_fused_projections_need_one_option():
    target = find_target("compressed-tensors")
    layers = {
        "m.0.q_proj": parse_option("w8"),
        "m.0.k_proj": parse_option("w4"),
        "m.0.v_proj": parse_option("w8"),
        "m.1.q_proj": parse_option("w4"),
        "m.1.k_proj": parse_option("w4"),
    }
    (found,) = objections(target, layers)
    assert (found.layer, found.nearest) == ("m.0.k_proj", ("w8",))
    assert "m.0.q_proj" in found.reason


def test_names_are_found_in_other_spellings_and_unknown_ones_get_neighbours():
    assert find_target("Auto_Round").name == "auto-round"
    assert find_target("onnx").name == "onnxruntime"
    with pytest.raises(UnknownNameError, match="torchao"):
        find_target("torcao")


def test_targets_that_hold_weights_ask_for_the_model(tmp_path):
    with pytest.raises(InputError, match="--model"):
        export({"fc": "w8a8"}, "onnxruntime", tmp_path / "model.onnx")
    with pytest.raises(InputError, match="names no layer"):
        export({}, "json", tmp_path / "out.json")
    with pytest.raises(InputError, match="is a folder"):
        export({"fc": "w8a8"}, "json", tmp_path)


def test_listing_and_rendering_import_no_torch():
    code = (
        "import sys, mpsearch.export as e\n"
        "for t in e.known_targets():\n"
        "    if not t.needs_model and t.name not in ('gguf', 'hawq'):\n"
        "        e.render({'fc': t.offers[1]}, t.name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
