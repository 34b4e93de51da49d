from __future__ import annotations

import json

import pytest

from mpsearch.budgets import format_amount
from mpsearch.hardware.device import known_devices

ROW = {"layer": "a", "option": "w8a8", "values": {"latency": 1.0}}
TABLE = {
    "kind": "cost_table",
    "device": "npu",
    "provenance": "a bench",
    "licence": "own",
    "units": {"latency": "ms"},
    "entries": [ROW],
}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE))
    return path


def test_devices_are_listed_with_what_they_price(run) -> None:
    for words in (["hardware"], ["hardware", "list"]):
        listed = run(*words)
        assert listed.code == 0
        assert all(name in listed.err for name in known_devices())
    facts = run("hardware", "list", "--json").json
    assert {fact["name"] for fact in facts} == set(known_devices())
    assert all(fact["resources"] for fact in facts)


def test_a_device_is_shown_with_its_citations(run) -> None:
    for name, words in (
        ("nvidia-h100-sxm", ["3.35e+12 B/s", "CUTLASS", "int4 weights"]),
        ("asic-45nm", ["Horowitz", "pJ per bit"]),
        ("mpic-riscv", ["2010.04073", "W"]),
        ("fpga-finn-mvau", ["FINN", "P = 1"]),
    ):
        shown = run("hardware", "show", name)
        assert shown.code == 0
        for word in words:
            assert word.split()[0] in shown.message
    assert run("hardware", "show", "nvidia-t4", "--json").json["name"] == "nvidia-t4"
    unknown = run("hardware", "show", "t4")
    assert unknown.code == 2
    assert "nvidia-t4" in unknown.message


def test_a_table_is_checked_and_shown(run, table, tmp_path) -> None:
    checked = run("hardware", "validate", table)
    assert checked.code == 0
    assert "1 rows, 1 options, prices latency" in checked.message
    shown = run("hardware", "show", table)
    assert "latency in ms; given, batch of 1" in shown.message
    table.write_text(json.dumps(TABLE | {"units": {"energy": "mJ"}}))
    broken = run("hardware", "validate", table)
    assert broken.code == 2
    assert "units has no entry for 'latency'" in broken.message
    assert run("hardware", "validate", tmp_path / "none.json").code == 2


def test_csv_columns_become_a_table(run, tmp_path) -> None:
    (tmp_path / "t.csv").write_text("name,wb,us\nfc,4,12.5\nfc,8,20\n")
    words = [
        "hardware",
        "import-csv",
        tmp_path / "t.csv",
        "--device",
        "npu",
        "--layer",
        "{name}",
        "--option",
        "w{wb}a8",
        "--provenance",
        "a bench",
        "--licence",
        "own",
        "--out",
        tmp_path / "t.json",
    ]
    assert run(*words, "--value", "latency=us:us").code == 0
    saved = json.loads((tmp_path / "t.json").read_text())
    assert [entry["option"] for entry in saved["entries"]] == ["w4a8", "w8a8"]
    for value, message in (("latency=us", "COLUMN:UNIT"), ("us:us", "RESOURCE=COLUMN:UNIT")):
        refused = run(*words, "--value", value)
        assert refused.code == 2
        assert message in refused.message


def test_published_latency_allocations_come_out_of_the_command_line(
    run, shared_data, tmp_path
) -> None:
    """HAWQ-V3's ResNet-18 on a T4, limits 25, 50 and 75 % of the way from 4 to 8 bits."""
    import numpy as np

    import mpsearch as mp

    source = shared_data / "resnet18_ilp_inputs.json"
    made = run("hardware", "import", "hawq-ilp", source, "--out", tmp_path / "t4.json")
    assert made.code == 0
    inputs = json.loads(source.read_text())
    trace = np.array(inputs["Hutchinson_trace"])
    loss = np.stack([trace * inputs[f"delta_weights_{b}bit_square"] for b in (4, 8)], axis=1)
    names, second = inputs["layers"], {b: a for a, b in inputs["tied_pairs"]}
    members = {names[a]: [names[a], names[b]] for b, a in second.items()}
    for late, early in second.items():
        loss[early] += loss[late]
    kept = [row for row in range(len(names)) if row not in second]
    mp.Profile.from_arrays(
        loss[kept], groups=[names[row] for row in kept], options=["w4a4", "w8a8"], members=members
    ).save(tmp_path / "profile.json")
    published = json.loads((shared_data / "resnet18_published.json").read_text())["configs"]
    for share in (0.75, 0.5, 0.25):
        for given in ("--hardware", "--costs"):
            found = run(
                "search",
                "--profile",
                tmp_path / "profile.json",
                given,
                tmp_path / "t4.json",
                "--budget",
                f"latency<={100 * share:g}%",
                "--gap",
                "0",
                "--json",
            )
            assert found.code == 0
            assert found.json["status"] == "optimal"
            bits = published[f"bit_config_resnet18_latency_{share:g}"]["bits"]
            layers = found.json["layers"]
            assert [layers[name] for name in names] == [f"w{b}a{b}" for b in bits]
    assert "loss per 1%" in found.message


def test_prices_and_searches_take_a_device(run, tmp_path) -> None:
    model = ("digits-resnet", "-d", "digits", "--options", "w4a4,w8a8")
    priced = run(
        "price",
        *model,
        "--hardware",
        "nvidia-t4",
        "--batch",
        "8",
        "--json",
        "--resources",
        "latency,activation_memory",
    )
    assert priced.code == 0
    assert set(priced.json["values"]) == {"latency"}
    assert set(priced.json["peaks"]) == {"activation_memory"}
    assert "a peak over" in priced.message
    found = run(
        "search",
        *model,
        "--hardware",
        "nvidia-t4",
        "--batch",
        "8",
        "-e",
        "sqnr",
        "-b",
        "latency<=60%",
        "-b",
        "activation_memory=50%",
        "-b",
        "weight_memory=50%",
        "--json",
        "--no-verify",
    )
    assert found.code == 0
    assert set(found.json["budgets"]) == {"latency", "activation_memory", "weight_memory"}
    assert "activation_memory peaks at" in found.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("search --profile P --hardware nvidia-t4 -b latency=50%", "needs the shapes"),
        ("search --hardware T -b latency=50%", "saved --profile"),
        ("search --profile P --hardware T -b energy=3mJ", "unknown resource 'energy'"),
        ("search --profile P --hardware T -b latency=3mJ", "unknown unit for latency 'mJ'"),
        ("search --profile P --hardware T -b latency>=3ms", "RESOURCE=AMOUNT"),
        ("search --profile P --hardware T -b latency=0.5x", "not known"),
        ("price digits-resnet -d digits --hardware nowhere.json", "unknown hardware"),
        ("price digits-resnet -d digits --resources moon", "unknown resource 'moon'"),
    ],
)
def test_bad_requests_exit_with_2_and_say_why(run, table, tmp_path, words, message) -> None:
    import mpsearch as mp

    profile = mp.Profile.from_arrays([[1.0]], groups=["a"], options=["w8a8"])
    places = {"P": profile.save(tmp_path / "p.json"), "T": table}
    found = run(*[places.get(word, word) for word in words.split()])
    assert found.code == 2
    assert message in found.message


def test_this_machine_is_measured_and_the_table_can_be_used(run, tmp_path) -> None:
    path = tmp_path / "cpu.json"
    words = ("hardware", "measure", "digits-resnet", "-d", "digits", "--rounds", "3")
    words = (*words, "--backend", "torch", "--out", path)
    first = run(*words, "--options", "float,w8a8,w2a8")
    assert first.code == 0
    assert "no CPU kernel" in first.message
    again = run(*words)
    assert again.code == 2
    assert "--resume" in again.message
    resumed = run(*words, "--resume", "--options", "float,w8a8,w2a8")
    assert resumed.code == 0
    assert run("hardware", "validate", path).code == 0
    assert run(*words, "--resume", "--device", "tpu").code == 2
    assert (
        run(
            "hardware",
            "measure",
            "digits-resnet",
            "-d",
            "digits",
            "--out",
            tmp_path / "x",
            "--backend",
            "tvm",
        ).code
        == 2
    )


@pytest.mark.slow
def test_sums_are_checked_against_whole_models_and_the_error_goes_with_the_budget(
    run, tmp_path
) -> None:
    pytest.importorskip("onnxruntime")
    path, model = tmp_path / "cpu.json", ("digits-resnet", "-d", "digits")
    few = ("--rounds", "5")
    measured = run("hardware", "measure", *model, *few, "--out", path)
    assert measured.code == 0, measured.message
    before = run("hardware", "show", path)
    assert "unchecked" in before.message
    found = run("hardware", "check", *model, *few, "--table", path, "--mixed", "1", "--json")
    assert found.code == 0
    checks = json.loads(found.out)
    assert [c["allocation"] for c in checks["checks"]] == [
        "uniform float",
        "uniform w8a8",
        "mixed 1",
    ]
    out = tmp_path / "out"
    searched = run(
        *("search", *model, "--options", "float,w8a8", "--hardware", path),
        *("--budget", "latency=1.5x", "--estimator", "sqnr", "--no-verify", "--out", out),
    )
    assert searched.code == 0, searched.message
    answer = json.loads((out / "allocation.json").read_text())
    assert answer["budgets"]["latency"]["tolerance"] == pytest.approx(checks["worst"])
    again = run(
        *("hardware", "check", *model, *few, "--table", path, "--mixed", "0"),
        *("--result", out / "allocation.json"),
    )
    assert again.code == 0
    assert "largest error" in again.message
    limit = format_amount(answer["budgets"]["latency"]["limit"], "s")
    assert f"measured, budget {limit} ± {checks['worst']:.1%}" in " ".join(again.message.split())
