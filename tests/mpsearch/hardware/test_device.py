from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from mpsearch.errors import UnknownNameError
from mpsearch.formats import parse_option
from mpsearch.hardware.device import Device, arithmetic_of, device, known_devices
from mpsearch.models.layer import Layer

CONV = Layer("c", "conv2d", (64, 32, 3, 3), 64 * 32 * 9 * 28 * 28, (1, 32, 28, 28), (1, 64, 28, 28))
BIG = Layer(
    "b", "conv2d", (512, 512, 3, 3), 512 * 512 * 9 * 28 * 28, (1, 512, 28, 28), (1, 512, 28, 28)
)
FC = Layer("f", "linear", (1000, 512), 512_000, (1, 512), (1, 1000))
TABLE = Layer("e", "embedding", (5000, 64), 0, (1, 10), (1, 10, 64))


@pytest.mark.parametrize("name", known_devices())
def test_every_shipped_figure_cites_its_source_and_survives_saving(name: str, tmp_path) -> None:
    found = device(name)
    assert found.name == name
    figures = [*found.peaks.values(), found.bandwidth, found.power, found.energies, found.luts]
    sources = [figure.source for figure in figures if figure is not None]
    assert sources
    assert all(len(source) > 20 for source in sources)
    assert Device.load(found.save(tmp_path / "d.json")) == found


def test_the_roofline_is_the_slower_of_arithmetic_and_memory() -> None:
    t4 = device("nvidia-t4")
    w4a4, w8a8 = parse_option("w4a4"), parse_option("w8a8")
    # Many operations a byte: int8 at 130 and int4 at 260 tera-operations, 2 for each MAC.
    assert t4.latency(BIG, w8a8, 64) == pytest.approx(2 * BIG.macs * 64 / 130e12)
    assert t4.latency(BIG, w4a4, 64) == pytest.approx(2 * BIG.macs * 64 / 260e12)
    # One row against half a million weights: bytes over 320 GB/s, scales of 16 bits a row counted.
    moved = 512_000 + 1000 * 2 + 512 + 1000
    assert t4.latency(FC, w8a8, 1) == pytest.approx(moved / 320e9)
    assert t4.latency(FC, w8a8, 1000) == pytest.approx(
        max(2 * FC.macs * 1000 / 130e12, (514_000 + 1512 * 1000) / 320e9)
    )


def test_a_look_up_reads_the_rows_it_returns() -> None:
    a100 = device("nvidia-a100-80gb")
    per_value = (4 + 16 / 64) + 16
    found = a100.latency(TABLE, parse_option("w4a16"), 2)
    assert found == pytest.approx(2 * 640 * per_value / 8 / 2039e9)


@pytest.mark.parametrize(
    ("name", "option", "reason"),
    [
        ("nvidia-h100-sxm", "w4a4", "no units for int4"),
        ("nvidia-t4", "w:fp8_e4m3/a:fp8_e4m3", "no units for fp8"),
        ("nvidia-t4", "w2a8", "int2 weights with int8 activations"),
        ("nvidia-t4", "w4a8", "int4 weights with int8 activations"),
        ("nvidia-a100-80gb", "w8", "write a16"),
        ("nvidia-b200", "w:mxfp4/a:mxfp8", "no units"),
        ("cortex-m7-stm32h743", "float", "no units for fp32"),
        ("nvidia-h100-sxm", "w:nf4/a:fp16", "nf4"),
        ("nvidia-t4", "w:int8_g32/a:int8", "int8_g32"),
    ],
)
def test_formats_without_units_have_no_latency_and_say_why(name, option, reason) -> None:
    found = device(name).latency(CONV, parse_option(option), 1)
    assert isinstance(found, str)
    assert reason in found


def test_weights_are_widened_only_where_a_kernel_that_does_it_is_cited() -> None:
    h100 = device("nvidia-h100-sxm")
    widened, half = (h100.peak_of(parse_option(o)) for o in ("w4a16", "w16a16"))
    assert widened == half
    assert isinstance(device("nvidia-t4").peak_of(parse_option("w4a16")), str)
    # Fewer bytes of weights still help where memory is the bottleneck.
    w4, w16 = (h100.latency(FC, parse_option(o), 1) for o in ("w4a16", "w16a16"))
    assert w4 < 0.35 * w16


def test_energy_of_integers_meets_the_published_points() -> None:
    """8-bit product 0.2 pJ, 32-bit addition 0.1 pJ, 32-bit float product and sum 3.7 and 0.9."""
    asic = device("asic-45nm")
    still = Layer("c", "conv2d", (1, 1), 10**12, (1, 0), (1, 0))
    w8a8 = asic.energy(still, parse_option("w8a8"), 1)
    w32 = asic.energy(still, parse_option("float"), 1)
    memory = (8 + 16) * 20.3125e-12
    assert w8a8 == pytest.approx(0.3 + memory, rel=1e-6)
    assert w32 == pytest.approx(4.6, rel=1e-6)
    w4a8, w8a4 = (asic.energy(still, parse_option(o), 1) for o in ("w4a8", "w8a4"))
    assert w4a8 == pytest.approx(w8a4, rel=1e-9)
    assert w4a8 < w8a8
    assert isinstance(asic.energy(still, parse_option("w:mxfp4/a:fp16"), 1), str)
    assert asic.resources == {"energy": "J"}


def test_a_pair_of_widths_may_have_a_rate_of_its_own() -> None:
    mpic = device("mpic-riscv")
    for option, rate in (("w8a8", 2.1), ("w2a8", 2.5), ("w4a2", 4.0), ("w2a2", 6.5)):
        seconds = mpic.latency(CONV, parse_option(option), 1)
        assert seconds == pytest.approx(CONV.macs / rate / 250e6)
        energy = mpic.energy(CONV, parse_option(option), 1)
        assert energy == pytest.approx(seconds * 5.3825e-3)


def test_luts_follow_the_formula() -> None:
    found = device("fpga-finn-mvau").price("luts", CONV, parse_option("w4a4"), 1)
    # One lane: (2·ceil(8/6) - 1)·8 multiplier, 8·1 tree, accumulator of 15 + ceil … bits.
    alpha = math.log2(32 * 9) + 4 + 4 - 2
    accumulator = math.ceil(alpha + math.log2(1 + 2**-alpha) + 1)
    assert found == pytest.approx(300 + 1.1 * (3 * 8 + 8 + accumulator))
    for option in ("w:fp4_e2m1/a:int4", "w:int4_g32/a:int4"):
        assert isinstance(
            device("fpga-finn-mvau").price("luts", CONV, parse_option(option), 1), str
        )


def test_minifloats_on_an_fpga_are_multiplied_exactly() -> None:
    """The register is as wide as the exact product: counted here from the formats' own grids."""
    model = device("fpga-minifloat-exact")
    one = Layer("o", "linear", (1, 1), 1, (1, 1), (1, 1))
    for name in ("fp4_e2m1", "fp6_e3m2", "e3m4"):
        option = parse_option(f"w:{name}/a:{name}")
        values = sorted(v for v in option.weight.grid.values() if v > 0)
        # In units of the smallest product, the largest one needs so many bits, and a sign.
        exact = math.ceil(math.log2((values[-1] / values[0]) ** 2 + 1)) + 1
        grid = option.weight.grid
        width = 2 * (grid.mantissa + 1) + 2 * (2**grid.exponent - 2) + 1
        assert width in {exact, exact + 1}
        assert model.price("luts", one, option, 1) > 300
    luts = {
        o: model.price("luts", CONV, parse_option(o), 1)
        for o in ("w:fp4_e2m1/a:fp4_e2m1", "w:e4m3/a:e4m3", "w4a4")
    }
    assert luts["w4a4"] < luts["w:fp4_e2m1/a:fp4_e2m1"] < luts["w:e4m3/a:e4m3"]
    finn = device("fpga-finn-mvau")
    assert luts["w4a4"] == finn.price("luts", CONV, parse_option("w4a4"), 1)
    assert isinstance(model.price("luts", CONV, parse_option("w:e4m3/a:int4"), 1), str)


def test_figures_whose_source_was_not_opened_are_named() -> None:
    assert device("nvidia-a100-80gb").unconfirmed == []
    bare = device("nvidia-jetson-agx-orin")
    assert bare.unconfirmed == []
    assert bare.bandwidth is not None
    figure = bare.bandwidth.model_copy(update={"confirmed": None})
    assert bare.model_copy(update={"bandwidth": figure}).unconfirmed == ["bandwidth"]
    assert device("fpga-minifloat-exact").unconfirmed == ["LUT model"]
    assert "int8" in device("samsung-exynos-2400-npu").peaks


def test_formats_are_told_apart_by_the_arithmetic_they_need() -> None:
    names = {
        "w8a8": "int8",
        "float": "fp32",
        "w16": "fp16",
        "bf16": "bf16",
        "fp8_e5m2": "fp8",
        "mxfp8_e4m3": "mxfp8",
        "mxfp4": "mxfp4",
        "nvfp4": "nvfp4",
        "e4m3": "e4m3",
        "int4_g128": "int4_g128",
        "nf4": "nf4",
    }
    assert {o: arithmetic_of(parse_option(o).weight) for o in names} == names


def test_unknown_devices_and_resources_are_named() -> None:
    with pytest.raises(UnknownNameError, match="nvidia-h100-sxm"):
        device("nvidia-h100")
    with pytest.raises(UnknownNameError, match="energy"):
        device("nvidia-t4").price("energy", CONV, parse_option("w8a8"), 1)


def test_a_device_without_figures_is_refused() -> None:
    with pytest.raises(ValidationError, match="neither peaks"):
        Device.model_validate_json(json.dumps({"name": "x", "summary": ""}))
    wide = {"operand": "weights", "narrow": ["int4"], "wide": "int8", "source": "s"}
    peaks = {"fp16": {"value": 1.0, "source": "s"}}
    with pytest.raises(ValidationError, match="has no peak"):
        Device.model_validate_json(
            json.dumps({"name": "x", "summary": "", "peaks": peaks, "widenings": [wide]})
        )
