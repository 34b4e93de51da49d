"""`mpsearch formats` as a user calls it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpsearch import formats


def test_list_names_every_family_and_how_it_is_written(run):
    result = run("formats")
    assert result.code == 0
    assert result.out == ""
    for name in ("int4", "fp8_e4m3", "mxfp4", "nvfp4", "nf4", "any4", "float"):
        assert name in result.err
    assert "int{1..16}[_asym]" in result.message
    assert "w:FORMAT" in result.message


def test_list_as_json_agrees_with_the_library(run):
    listed = run("formats", "--json").json
    assert [entry["name"] for entry in listed] == list(formats.known())
    for entry in listed:
        spec = formats.get(entry["name"])
        assert entry["bits"] == spec.bits
        assert entry["effective_bits"] == spec.effective_bits((256, 1024))


def test_show_explains_a_microscaling_format(run):
    result = run("formats", "show", "mxfp4")
    assert result.code == 0
    assert "-6 -4 -3 -2 -1.5 -1 -0.5 0 0.5 1 1.5 2 3 4 6" in result.message
    assert "4.25 with scales" in result.message
    assert "OCP Microscaling" in result.message
    # one mark for each of the fifteen values
    assert sum(line.count("▁") for line in result.err.splitlines()) == 15


def test_show_as_json_holds_the_grid(run):
    shown = run("formats", "show", "fp6_e3m2", "--json").json
    assert shown["values"] == list(formats.get("fp6_e3m2").value_grid())
    assert shown["high"] == 28
    assert shown["smallest_positive"] == 0.0625
    assert shown["count"] == 63


@pytest.mark.parametrize("name", formats.known())
def test_every_listed_format_can_be_shown(run, name):
    result = run("formats", "show", name)
    assert result.code == 0
    assert name in result.err
    assert run("formats", "show", name, "--json").json["name"] == name


def test_names_outside_the_list_can_be_shown(run):
    assert run("formats", "show", "e2m3_g64_mse", "--json").json["block"] == 64


def test_unknown_name_ends_with_code_2_near_names_and_the_grammar(run):
    result = run("formats", "show", "mxfp5")
    assert result.code == 2
    assert "mxfp4" in result.message
    assert "int{1..16}" in result.message


def test_listing_imports_no_torch():
    script = (
        "import sys\n"
        "from mpsearch.cli import main\n"
        "try:\n    main(['formats', 'show', 'nvfp4'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("columns", [24, 40, 60, 200])
def test_the_plot_fits_the_terminal(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run("formats", "show", "mxfp4").err.splitlines()
    axis = [line for line in lines if line and set(line.strip()) == {"─"}]
    assert [len(line.strip()) for line in axis] == [min(65, columns - 1 + columns % 2)]
    bars = lines[lines.index(axis[0]) - 1]
    assert bars[0] == bars[len(axis[0].strip()) - 1] == "▁"
    assert 11 <= bars.count("▁") <= 15


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("int16", -32767, 32767),
        ("int12_asym", 0, 4095),
        ("fp16", -65504, 65504),
        ("e5m10", -131008, 131008),
        ("bfp12", -2047 / 1024, 2047 / 1024),
        ("nvfp4", -6, 6),
        ("any4", None, None),
    ],
)
def test_the_range_is_shown_where_values_are_too_many_to_list(run, name, low, high):
    shown = run("formats", "show", name, "--json").json
    assert (shown["low"], shown["high"]) == (low, high)
    message = run("formats", "show", name).message
    assert "learned" in message if low is None else f"{high:.9g}" in message
