"""Options as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch import formats
from mpsearch.errors import InputError, UnknownNameError
from mpsearch.formats import parse_option


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [
        ("w4a8", "int4", "int8"),
        ("w4", "int4", "float"),
        ("w4a16", "int4", "fp16"),
        ("w8a32", "int8", "float"),
        ("w16a16", "fp16", "fp16"),
        ("w1a8", "binary", "int8"),
        ("w:mxfp4/a:fp8_e4m3", "mxfp4", "fp8_e4m3"),
        ("w:int4_g128", "int4_g128", "float"),
        ("mxfp4", "mxfp4", "float"),
        ("int3_asym_g64", "int3_asym_g64", "float"),
        ("float", "float", "float"),
        ("w:any4/a:int8_asym", "any4", "int8_asym"),
        (" W4A8 ", "int4", "int8"),
    ],
)
def test_option_names_two_formats(text, weight, activation):
    option = parse_option(text)
    assert option.weight == formats.get(weight)
    assert option.activation == formats.get(activation)
    assert option.name == text.strip().lower()
    assert option.is_float == (text == "float")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("w4", "w:int4/a:float"),
        ("w4", "int4"),
        ("w4a8", "w:int4/a:int8"),
        ("w:e2m1/a:e4m3_fn", "w:fp4_e2m1/a:fp8_e4m3"),
        ("float", "w32a32"),
        ("W8A8", "w8a8"),
    ],
)
def test_two_spellings_are_one_option(one, other):
    assert parse_option(one) == parse_option(other)
    assert parse_option(one).key == parse_option(other).key
    assert len({parse_option(one), parse_option(other)}) == 1


def test_different_options_have_different_keys():
    texts = ["w4a8", "w8a4", "w4", "mxfp4", "float", "w4a16", "w:int4_asym/a:int8"]
    assert len({parse_option(text).key for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "text", ["", "w:", "w4/a8", "a:int8", "w:int4/a:int8/x", "a8w4:", "w:/a:int8"]
)
def test_malformed_options_show_the_grammar(text):
    with pytest.raises(InputError, match="w:FORMAT"):
        parse_option(text)


@pytest.mark.parametrize(("text", "near"), [("w4a", "w4a8"), ("w4b8", "w4a8"), ("mxfp", "mxfp4")])
def test_unknown_options_show_the_grammar_and_near_ones(text, near):
    with pytest.raises(UnknownNameError, match=near) as caught:
        parse_option(text)
    assert formats.OPTION_GRAMMAR in str(caught.value)


def test_unknown_format_inside_an_option_is_named():
    with pytest.raises(UnknownNameError, match="unknown format 'mxfp5'; did you mean"):
        parse_option("w:int4/a:mxfp5")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("w0a8", "0 bits"),
        ("w17", "17 bits"),
        ("w4a64", "64 bits"),
        ("w:int99", "1 to 16 bits"),
        ("w:int4/a:any4", "any4 is for weights only"),
        ("w:e8m0", "e8m0 is for scales only"),
        ("w:int4/a:e8m0", "e8m0 is for scales only"),
    ],
)
def test_options_that_cannot_be_used_say_why(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_option(text)


def test_what_is_not_text_is_refused():
    with pytest.raises(InputError, match="written as text"):
        parse_option(4)


@given(st.text(max_size=12))
def test_any_text_is_an_option_or_an_input_error(text):
    try:
        option = parse_option(text)
    except InputError:
        return
    assert parse_option(option.name) == option
