from __future__ import annotations

import json

import pytest

from mpsearch.errors import DocumentError, InputError
from mpsearch.hardware.csv_tables import ColumnMapping, import_csv
from mpsearch.hardware.table import CostTable, to_base

CONTENT = {
    "kind": "cost_table",
    "device": "npu",
    "provenance": "bench of 2024-05-01",
    "licence": "own",
    "origin": "measured",
    "units": {"latency": "ms", "points": "pt"},
    "entries": [
        {
            "op": "linear",
            "shape": {"in_features": size, "out_features": 64},
            "option": option,
            "values": {"latency": time * size, "points": 1.0},
            "spread": {"latency": 0.1},
        }
        for size in (64, 256)
        for option, time in (("w8a8", 0.02), ("w4a8", 0.01))
    ],
    "unavailable": [{"option": "w2a8", "reason": "no 2-bit kernel"}],
}
CSV = """# device: npu
# provenance: bench of 2024-05-01
# licence: own
# origin: measured
op,in_features,out_features,option,latency[ms],points[pt],spread:latency[ms]
linear,64,64,w8a8,1.28,1,0.1
linear,64,64,w4a8,0.64,1,0.1
linear,256,64,w8a8,5.12,1,0.1
linear,256,64,w4a8,2.56,1,0.1
"""


def table(**changes) -> CostTable:
    return CostTable.checked(CONTENT | changes, "table")


def test_json_yaml_and_csv_hold_the_same_table(tmp_path) -> None:
    yaml = pytest.importorskip("yaml")
    (tmp_path / "t.json").write_text(json.dumps(CONTENT))
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(CONTENT))
    (tmp_path / "t.csv").write_text(CSV)
    as_json, as_yaml, as_csv = (
        CostTable.read(tmp_path / f"t.{e}") for e in ("json", "yaml", "csv")
    )
    assert as_json == as_yaml
    assert as_csv.entries == as_json.entries
    assert CostTable.load(as_json.save(tmp_path / "u.json")) == as_json


def test_shapes_between_are_interpolated_and_those_beyond_are_flagged() -> None:
    found = table()
    shape = {"in_features": 128, "out_features": 64, "macs": 1}
    inside = found.of_shape("linear", shape, "w8a8", "latency")
    assert (inside.value, inside.origin) == (pytest.approx(2.56e-3), "interpolated")
    measured = found.of_shape("linear", shape | {"in_features": 64}, "w:int4/a:int8", "latency")
    assert (measured.value, measured.origin) == (pytest.approx(0.64e-3), "measured")
    beyond = found.of_shape("linear", shape | {"in_features": 512}, "w8a8", "latency")
    assert (beyond.value, beyond.origin) == (pytest.approx(10.24e-3), "extrapolated")


def test_what_the_table_lacks_is_said() -> None:
    found = table()
    assert "no conv2d" in found.of_shape("conv2d", {}, "w8a8", "latency")
    assert "at w6a8" in found.of_shape("linear", {}, "w6a8", "latency")
    assert "['in_features'" in found.of_shape("linear", {"out_features": 64}, "w8a8", "latency")
    assert found.why_missing("linear", "w2a8") == "no 2-bit kernel"
    assert found.why_missing("linear", "w8a8") is None
    kernels = table(
        entries=[
            {
                "op": "conv2d",
                "shape": {"kernel_height": k, "out_channels": 8},
                "option": "w8a8",
                "values": {"latency": 1.0},
            }
            for k in (1, 3)
        ]
    )
    wanted = {"kernel_height": 5, "out_channels": 8}
    assert "kernel_height 5" in kernels.of_shape("conv2d", wanted, "w8a8", "latency")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (2.5, "ms", (2.5e-3, "s")),
        (3, "us", (3e-6, "s")),
        (2, "MiB", (2 * 2**20, "B")),
        (4, "mJ", (4e-3, "J")),
        (7, "GBOPs", (7e9, "BOPs")),
        (7, "cycles", (7, "cycles")),
        (7, "M", (7, "M")),
    ],
)
def test_units_become_base_units_and_words_of_ones_own_stay(value, unit, expected) -> None:
    found = to_base(value, unit)
    assert found == (pytest.approx(expected[0]), expected[1])


def entry(**changes):
    return [CONTENT["entries"][0] | changes]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": ""}, "licence"),
        ({"entries": []}, "entries"),
        ({"entries": entry(option="w4z8")}, r"entries\[0\].*w4z8"),
        ({"entries": entry(values={"latency": -1.0})}, "not negative"),
        ({"entries": entry(values={"latency": 0.0})}, "log space"),
        ({"entries": entry(values={"watts": 1.0})}, "units has no entry for 'watts'"),
        ({"entries": entry(op=None)}, "needs a layer name"),
        ({"entries": entry(shape={"in_features": 0})}, "below 1"),
        ({"entries": entry() * 2}, "repeats an earlier row"),
        ({"entries": entry() + entry(shape={"rows": 3})}, "other rows of linear have"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_broken_tables_say_where_and_what(changes, message) -> None:
    with pytest.raises(DocumentError, match=message):
        table(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("op,option,latency\nlinear,w8a8,1\n", "unit in brackets"),
        ("op,option,latency[ms]\n", "no rows"),
        ("op,option,latency[ms]\nlinear,w8a8,fast\n", "line 2: .*'fast'"),
        ("op,in,option,latency[ms]\nlinear,1.5,w8a8,1\n", "whole number"),
        ("op,option,latency[ms]\nlinear,w8a8\n", "line 2: not as many"),
        ("op,in,option,latency[ms]\nlinear,1,w8a8,1\n", "device"),
    ],
)
def test_broken_csv_says_where_and_what(tmp_path, text, message) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DocumentError, match=message):
        CostTable.read(tmp_path / "t.csv")


def test_other_peoples_columns_are_mapped(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("name,wb,ab,us,cin\nfc,4,8,12.5,64\nfc,8,8,20,64\n")
    about = {"device": "npu", "provenance": "someone", "licence": "MIT"}
    by_layer = import_csv(
        tmp_path / "t.csv",
        ColumnMapping(option="w{wb}a{ab}", values={"latency": ("us", "us")}, layer="{name}"),
        **about,
    )
    assert by_layer.of_layer("fc", "w4a8", "latency").value == pytest.approx(12.5e-6)
    assert by_layer.of_layer("fc", "w2a8", "latency") is None
    by_shape = import_csv(
        tmp_path / "t.csv",
        ColumnMapping(
            option="w{wb}a{ab}",
            values={"latency": ("us", "us")},
            op="linear",
            shape={"in_features": "cin"},
        ),
        **about,
    )
    assert by_shape.entries[0].shape == {"in_features": 64}
    for mapping, error, message in (
        (ColumnMapping(option="{bits}", values={"l": ("us", "us")}), DocumentError, "'bits'"),
        (ColumnMapping(option="w8a8", values={"l": ("ms", "ms")}), DocumentError, "'ms'"),
        (ColumnMapping(option="{", values={"l": ("us", "us")}), InputError, "template"),
    ):
        with pytest.raises(error, match=message):
            import_csv(tmp_path / "t.csv", mapping, **about)


def test_unreadable_files_are_named(tmp_path) -> None:
    for name in ("none.csv", "none.yaml", "none.json"):
        with pytest.raises(DocumentError, match=name):
            CostTable.read(tmp_path / name)
