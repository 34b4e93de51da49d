"""Names in, formats out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpsearch import formats
from mpsearch.errors import InputError, UnknownNameError
from mpsearch.formats import registry


def test_every_known_name_is_the_format_of_that_name():
    assert len(set(formats.known())) == len(formats.known())
    for name in formats.known():
        spec = formats.get(name)
        assert spec.name == name
        assert spec is formats.get(name)
        assert spec.source
        assert spec.summary
        assert hash(spec) == hash(formats.get(name.upper()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("e2m1", "fp4_e2m1"),
        ("e3m2_g64", "fp6_e3m2_g64"),
        ("e4m3_fn", "fp8_e4m3"),
        ("e5m2_ieee", "fp8_e5m2"),
        ("e4m3b7", "e4m3"),
        ("mxfp8", "mxfp8_e4m3"),
        ("mxfp4", "mxfp4_b32"),
        ("mxint8", "bfp8_b32"),
        ("int1", "binary"),
        ("int4_channel", "int4"),
        (" INT4_G128 ", "int4_g128"),
        ("nf4", "nf4_b64"),
        ("float", "fp32"),
    ],
)
def test_two_names_of_one_format_are_equal(one, other):
    assert formats.get(one) == formats.get(other)
    assert hash(formats.get(one)) == hash(formats.get(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("e4m3", "fp8_e4m3"),
        ("e5m2", "fp8_e5m2"),
        ("int4", "int4_asym"),
        ("int4", "int4_tensor"),
        ("int4_mse", "int4"),
        ("mxint8", "bfp8"),
        ("fp16", "e5m10"),
    ],
)
def test_formats_that_round_or_store_differently_are_not_equal(one, other):
    assert formats.get(one) != formats.get(other)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("int0", "1 to 16 bits"),
        ("int17", "1 to 16 bits"),
        ("int4_g0", "at least one value"),
        ("int4_p0", "percentile"),
        ("int4_p101", "percentile"),
        ("e0m3", "1 to 8 exponent bits"),
        ("e9m7", "1 to 8 exponent bits"),
        ("e5m24", "at most 23 mantissa bits"),
        ("e4m0_fn", "no code for NaN"),
        ("e1m2_ieee", "no normal value"),
        ("e4m3b40", "bias 40"),
        ("mxfp4_b0", "at least one value"),
        ("nvfp4_b0", "at least one value"),
        ("nf4_b0", "at least one value"),
        ("any9", "1 to 8 bits"),
        ("bfp1", "2 to 16 bits"),
        ("fp9_auto", "3 to 8 bits"),
        ("ternary_mse", "not clipped"),
    ],
)
def test_numbers_out_of_range_are_named(name, reason):
    with pytest.raises(InputError, match=reason) as caught:
        formats.get(name)
    assert name in str(caught.value)
    assert "Grammar: " in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["int4_g{}", "int{}", "e{}m3", "e4m3b{}", "mxfp4_b{}", "any4_g{}", "w{}a8", "w:int{}/a:int8"],
)
def test_numbers_of_thousands_of_digits_are_refused_in_a_short_message(text):
    with pytest.raises(InputError, match="Grammar: ") as caught:
        formats.parse_option(text.format("9" * 5000))
    assert len(str(caught.value)) < 2000


def test_digits_of_other_scripts_are_no_numbers():
    for name in ("int\u0664", "w\u0664a\u0668", "mxfp4_b\u0663\u0662"):
        with pytest.raises(InputError, match="Grammar"):
            formats.parse_option(name)


@pytest.mark.parametrize(
    "name", ["", "int", "int4_", "int4_g", "mxfp5", "e4", "nvfp8", "fp4", "int1_asymm"]
)
def test_unknown_names_show_the_grammar(name):
    with pytest.raises(UnknownNameError, match=r"int\{1..16\}\[_asym\]"):
        formats.get(name)


def test_unknown_names_show_near_ones():
    with pytest.raises(UnknownNameError) as caught:
        formats.get("nvfp")
    assert caught.value.near == ["nvfp4"]


def test_what_is_not_text_is_refused():
    with pytest.raises(InputError, match="int 4"):
        formats.get(4)


def test_a_family_of_ones_own_is_one_registration(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    formats.get.cache_clear()
    with pytest.raises(UnknownNameError):
        formats.get("thirds")
    formats.register_table("thirds", [-1, -1 / 3, 1 / 3, 1], source="this test", block=8)
    try:
        spec = formats.get("thirds_b4")
        assert "thirds" in formats.known()
        assert spec.bits == 2
        assert spec.effective_bits((4, 8)) == 2 + 16 / 4
        assert formats.get("thirds").block == 8
        with pytest.raises(InputError, match="'thirds' reads as a format"):
            formats.register_table("thirds", [0, 1], source="again")
    finally:
        formats.get.cache_clear()


@pytest.mark.parametrize(
    ("name", "values"),
    [("UPPER", [0, 1]), ("one", [1]), ("twice", [1, 1]), ("nan", [1, float("nan")])],
)
def test_tables_that_cannot_be_used_are_refused(name, values):
    with pytest.raises(InputError, match=name):
        formats.register_table(name, values, source="this test")


@pytest.mark.parametrize(
    "name", ["int4", "float", "nf4", "mxfp4", "e3m4", "e8m0", "int99", "w4a8", "w8", "w99", "fp16"]
)
def test_a_table_cannot_take_the_name_of_a_format_or_an_option(name):
    before = formats.families()
    with pytest.raises(InputError, match=f"{name!r} reads as a format or an option already"):
        formats.register_table(name, [0, 1], source="this test")
    assert formats.families() == before


@pytest.mark.parametrize("name", formats.known())
def test_a_cast_knows_two_ways_to_overflow(name):
    import torch

    with pytest.raises(UnknownNameError, match=r"'iee'; did you mean ieee.*known: ieee, saturate"):
        formats.get(name).cast(torch.ones(3), overflow="iee")


def test_listing_and_pricing_import_no_torch():
    script = (
        "import sys\n"
        "from mpsearch import formats\n"
        "for name in formats.known():\n"
        "    spec = formats.get(name)\n"
        "    spec.value_grid(), spec.effective_bits((64, 576)), spec.summary, spec.source\n"
        "    spec.uniform_step(-1, 1)\n"
        "formats.parse_option('w:mxfp4/a:fp8_e4m3')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
