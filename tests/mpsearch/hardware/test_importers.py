from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.errors import DocumentError, UnknownNameError
from mpsearch.formats import parse_option
from mpsearch.hardware.device import device
from mpsearch.hardware.importers import import_published
from mpsearch.hardware.lookup import price_profile
from mpsearch.hardware.table import CostTable
from mpsearch.models.layer import Layer

FILES = {
    "hawq-autotvm": "hwtables/hawq_t4_autotvm_conv.json",
    "hawq-ilp": "resnet18_ilp_inputs.json",
    "haq": "hwtables/haq_qmobilenetv2_batch16_latency_table.csv",
    "mpic": "hwtables/mpic_riscv_macs_per_cycle.json",
    "qkeras-energy": "hwtables/qkeras_horowitz_energy.json",
    "finn-mvau": "hwtables/finn_mvau_lut_model.json",
}
CONV = Layer("c", "conv2d", (64, 32, 3, 3), 64 * 32 * 9 * 28 * 28, (1, 32, 28, 28), (1, 64, 28, 28))


@pytest.mark.parametrize("layout", FILES)
def test_public_files_are_read_and_keep_their_licence(layout: str, shared_data: Path) -> None:
    found = import_published(layout, shared_data / FILES[layout])
    assert any(word in found.model_dump_json() for word in ("MIT", "Apache-2.0", "BSD-3"))


def test_a_file_of_another_layout_is_refused(shared_data: Path, tmp_path) -> None:
    with pytest.raises(DocumentError, match="not of layout mpic"):
        import_published("mpic", shared_data / FILES["hawq-ilp"])
    with pytest.raises(DocumentError, match="cannot read"):
        import_published("mpic", tmp_path / "none.json")
    with pytest.raises(UnknownNameError, match="hawq-ilp"):
        import_published("hawq", shared_data / FILES["hawq-ilp"])
    changed = json.loads((shared_data / FILES["finn-mvau"]).read_text())
    changed["addertree"] = "(W+A) * Q"
    (tmp_path / "f.json").write_text(json.dumps(changed))
    with pytest.raises(DocumentError, match="addertree"):
        import_published("finn-mvau", tmp_path / "f.json")


def test_the_table_of_haq_holds_its_published_totals(shared_data: Path) -> None:
    table = import_published("haq", shared_data / FILES["haq"])
    totals = json.loads((shared_data / "hwtables/haq_meta.json").read_text())
    for bits in (8, 4, 2):
        prices = [table.of_layer(str(i), f"w{bits}a{bits}", "latency_units") for i in range(53)]
        assert sum(price.value for price in prices) == totals[f"sum_{bits}x{bits}"]
    assert len(table.entries) == 53 * 64
    assert table.of_layer("0", "w:int1_asym/a:int8", "latency_units").value == 1606528


def test_tuned_convolutions_are_found_by_the_shape_of_a_layer(shared_data: Path) -> None:
    table = import_published("hawq-autotvm", shared_data / FILES["hawq-autotvm"])
    shape = {
        "in_channels": 512,
        "out_channels": 512,
        "kernel_height": 3,
        "kernel_width": 3,
        "stride_height": 1,
        "stride_width": 1,
        "out_height": 7,
        "out_width": 7,
    }
    found = table.of_shape("conv2d", shape, "w4a4", "latency")
    assert found.origin == "measured"
    logs = json.loads((shared_data / FILES["hawq-autotvm"]).read_text())["rows"]
    runs = [
        row["latency_us"]
        for row in logs
        if (row["data_shape"], row["kernel_shape"]) == ([9, 9, 8, 512], [3, 3, 512, 512])
        and row["kernel_dtype"] == "int4"
    ]
    assert found.value == pytest.approx(np.median(runs) * 1e-6)
    assert (table.batch, table.units) == (8, {"latency": "us"})


def test_imported_models_agree_with_the_devices_that_are_shipped(shared_data: Path) -> None:
    for layout, name in (
        ("mpic", "mpic-riscv"),
        ("qkeras-energy", "asic-45nm"),
        ("finn-mvau", "fpga-finn-mvau"),
    ):
        read, shipped = import_published(layout, shared_data / FILES[layout]), device(name)
        assert read.resources == shipped.resources
        for option in map(parse_option, ("w8a8", "w4a8", "w2a2")):
            for resource in read.resources:
                ours = shipped.price(resource, CONV, option, 1)
                assert read.price(resource, CONV, option, 1) == pytest.approx(ours)


@pytest.fixture
def hawq(shared_data: Path, tmp_path):
    """Scores of HAWQ-V3's ResNet-18 as a saved profile, and its costs as a saved table."""
    inputs = json.loads((shared_data / FILES["hawq-ilp"]).read_text())
    trace = np.array(inputs["Hutchinson_trace"])
    loss = np.stack([trace * inputs[f"delta_weights_{bits}bit_square"] for bits in (4, 8)], axis=1)
    partner = dict(inputs["tied_pairs"])
    tied = set(partner.values())
    rows = [row for row in range(len(trace)) if row not in tied]
    names = inputs["layers"]
    groups = [[names[row]] + ([names[partner[row]]] if row in partner else []) for row in rows]
    summed = [loss[row] + (loss[partner[row]] if row in partner else 0) for row in rows]
    profile = mp.Profile.from_arrays(
        summed,
        groups=[members[0] for members in groups],
        options=["w4a4", "w8a8"],
        members={members[0]: members for members in groups if len(members) > 1},
        estimator="hessian_trace",
    )
    profile.save(tmp_path / "profile.json")
    import_published("hawq-ilp", shared_data / FILES["hawq-ilp"]).save(tmp_path / "table.json")
    published = json.loads((shared_data / "resnet18_published.json").read_text())["configs"]
    return profile, names, published, tmp_path


@pytest.mark.parametrize("resource", ["latency", "size", "bops"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_published_allocations_of_hawq_v3_come_out(hawq, resource: str, share: float) -> None:
    profile, names, published, folder = hawq
    costs = price_profile(profile, CostTable.load(folder / "table.json"))
    answer = mp.allocate(profile, costs, {resource: f"{share:.0%}"}, gap=0)
    name = "modelsize" if resource == "size" else resource
    bits = published[f"bit_config_resnet18_{name}_{share:g}"]["bits"]
    assert answer.status == "optimal"
    assert [answer.layers[layer] for layer in names] == [f"w{b}a{b}" for b in bits]
