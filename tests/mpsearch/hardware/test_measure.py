from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import InputError, ModelError
from mpsearch.formats import parse_option
from mpsearch.hardware import measure
from mpsearch.hardware.cpu_kernels import Unsupported, int8_accumulation, kernel_for
from mpsearch.hardware.cuda_kernels import cuda_kernel_for, why_no_cuda
from mpsearch.hardware.measure import Timing, measure_kernels, time_kernels
from mpsearch.hardware.table import CostTable
from mpsearch.models.digits import DigitsResNet

QUICK = Timing(rounds=3, sample_seconds=0.0, warm_up=1)
MENU = ["float", "w8a8", "w:bf16/a:bf16", "w4a8"]


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2, bias=False),
        nn.Linear(9, 5),
    ],
)
def test_what_is_timed_computes_the_layer(module: nn.Module) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 9, 9)
    with torch.inference_mode():
        exact = module(inputs)
        if isinstance(module, nn.Conv2d):
            found = {o: kernel_for(module, inputs, parse_option(o))() for o in MENU[:3]}
        else:
            exact = module(inputs.reshape(-1, 9))
            rows = inputs.reshape(-1, 9)
            found = {o: kernel_for(module, rows, parse_option(o))() for o in MENU[:3]}
    torch.testing.assert_close(found["float"], exact)
    torch.testing.assert_close(found["w:bf16/a:bf16"].float(), exact, atol=0.05, rtol=0.05)
    int8 = found["w8a8"]
    assert int8.dtype == torch.quint8
    # Input, weight and output are rounded to 8 bits each. Processors without VNNI saturate some
    # sums, which is why the largest error says nothing.
    error = (int8.dequantize() - exact).abs()
    assert float(error.median()) < 0.02 * float(exact.std())


@pytest.mark.parametrize(("option", "tolerance"), [("int4_g32", 1e-4), ("w:int4_g64/a:bf16", 0.3)])
def test_the_int4_product_multiplies_by_weights_of_four_bits(option: str, tolerance: float) -> None:
    torch.manual_seed(0)
    layer, rows = nn.Linear(128, 32), torch.randn(5, 128)
    found = kernel_for(layer, rows, parse_option(option))()
    spec = parse_option(option).weight
    with torch.no_grad():
        rounded = spec.fake_quantize(layer.weight.detach(), channel_axis=0)
        exact = nn.functional.linear(rows, rounded, layer.bias)
    assert float((found.float() - exact).abs().max()) < tolerance


def test_cuda_is_measured_where_there_is_one_and_else_refused_with_the_reason() -> None:
    reason = why_no_cuda()
    if reason is not None:
        with pytest.raises(InputError, match=re.escape(reason)):
            measure_kernels(nn.Linear(8, 8), torch.zeros(1, 8), ["float"], device="cuda")
        pytest.skip(reason)
    menu = ["float", "w16a16", "w8a8", "w:fp8_e4m3/a:fp8_e4m3", "w:int4_g32/a:bf16"]
    rows = torch.randn(32, 256)
    table = measure_kernels(nn.Linear(256, 64), rows, menu, device="cuda", timing=QUICK)
    assert {"float", "w16a16"} <= set(table.options)


def test_what_has_no_cuda_kernel_says_why_before_a_device_is_needed() -> None:
    image = torch.randn(1, 4, 9, 9)
    for module, option, reason in (
        (nn.Conv2d(4, 4, 3), "w8a8", "convolutions in float alone"),
        (nn.Embedding(4, 4), "float", "Embedding is not measured"),
    ):
        found = cuda_kernel_for(module, image, parse_option(option))
        assert isinstance(found, Unsupported)
        assert reason in found.reason


def test_a_device_without_kernels_is_refused() -> None:
    with pytest.raises(InputError, match="cpu and cuda"):
        measure_kernels(nn.Linear(8, 8), torch.zeros(1, 8), ["float"], device="tpu")


def test_saturating_sums_of_int8_kernels_are_noticed() -> None:
    """Weights of 127 and activations of 255: a pair of products exceeds 16 bits."""
    found = int8_accumulation()
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        pytest.skip("the processor's features cannot be read here")
    if "vnni" in facts.read_text(encoding="utf-8"):
        assert found == "exact"
    elif "avx2" in facts.read_text(encoding="utf-8"):
        assert "16 bits" in found


def test_what_has_no_kernel_says_why() -> None:
    image = torch.randn(1, 4, 9, 9)
    reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    named = nn.Conv2d(4, 4, 3, padding="same")
    for module, option, reason in (
        (reflecting, "w8a8", "reflect padding"),
        (named, "w8a8", "padding by name"),
        (nn.Conv2d(4, 4, 3), "w4a8", "int4 weights with int8"),
        (nn.Conv2d(4, 4, 3), "int4_g32", "linear layers alone"),
        (nn.Linear(40, 16), "int4_g32", "divide the inputs"),
        (nn.Linear(32, 10), "int4_g32", "multiple of 16 outputs"),
        (nn.Conv2d(4, 4, 3), "w8", "int8 weights with fp32"),
        (nn.Embedding(4, 4), "float", "Embedding is not measured"),
    ):
        found = kernel_for(module, image, parse_option(option))
        assert isinstance(found, Unsupported)
        assert reason in found.reason


def test_a_kernel_takes_no_less_than_it_sleeps_by_the_clock_and_little_of_the_processor() -> None:
    def sleeping() -> torch.Tensor:
        time.sleep(0.002)
        return torch.zeros(1)

    [(waited, spread)] = time_kernels([sleeping], Timing(rounds=5, threads=2))
    assert waited >= 0.002
    assert spread >= 0
    [(worked, _)] = time_kernels([sleeping], Timing(rounds=5, threads=1))
    assert worked < 0.002


@pytest.fixture(scope="module")
def table() -> CostTable:
    return measure_kernels(DigitsResNet(), torch.randn(2, 1, 8, 8), MENU, batch=4, timing=QUICK)


def test_every_shape_is_timed_once_and_what_cannot_run_is_listed(table: CostTable) -> None:
    places = [(e.op, tuple(e.shape.items()), e.option) for e in table.entries]
    assert len(set(places)) == len(places) == 3 * 9  # 10 layers, two of one shape
    assert {m.option for m in table.unavailable} == {"w4a8"}
    assert table.origin == "measured"
    assert table.batch == 4
    assert table.conditions["threads"] == "1"
    assert all(e.values["latency"] > 0 and "latency" in e.spread for e in table.entries)


def test_measuring_goes_on_where_it_stopped(table: CostTable, tmp_path, monkeypatch) -> None:
    timed = []

    def count(kernels, timing, device):
        timed.extend(kernels)
        return [(1.0, 0.1) for _ in kernels]

    monkeypatch.setattr(measure, "time_kernels", count)
    part = CostTable.checked(
        table.model_dump() | {"entries": [e.model_dump() for e in table.entries[:20]]}, "part"
    )
    path = tmp_path / "t.json"
    model, image = DigitsResNet(), torch.randn(2, 1, 8, 8)
    full = measure_kernels(model, image, MENU, batch=4, timing=QUICK, known=part, save_to=path)
    assert len(timed) == 7
    assert full.entries[:20] == part.entries
    assert CostTable.load(path) == full
    with pytest.raises(InputError, match=r"batch 4, this is .* batch 8"):
        measure_kernels(model, image, MENU, batch=8, timing=QUICK, known=part)


def test_a_model_that_cannot_be_timed_is_refused() -> None:
    with pytest.raises(ModelError, match="int4 weights"):
        measure_kernels(nn.Linear(3, 3), torch.zeros(1, 3), ["w4a8"], timing=QUICK)


def test_a_measured_table_prices_the_model_it_was_measured_on(table: CostTable) -> None:
    model, image = DigitsResNet(), torch.randn(8, 1, 8, 8)
    costs = mp.price(model, image, MENU, table)
    assert {o for row in costs.origins["latency"] for o in row} == {"measured", "unavailable"}
    assert all(list(reasons) == ["w4a8"] for reasons in costs.unavailable.values())
    answer = mp.search(
        model,
        (image, torch.zeros(8, dtype=torch.long)),
        ["float", "w8a8", "w4a8"],
        {"latency": "1x", "weight_memory": "0.6x", "activation_memory": "0.9x"},
        hardware=table,
        estimator="sqnr",
        verified=False,
    )
    assert all(use.usage <= use.limit for use in answer.budgets.values())
    assert "w4a8" not in answer.layers.values()


def test_a_gpu_is_timed_by_events_with_cold_caches_and_read_when_it_is_done(monkeypatch) -> None:
    """No GPU: its calls are noted in order, and events tell fixed times."""
    called: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            called.append("event")

        def elapsed_time(self, end: object) -> float:
            assert called[-1] == "wait"
            return 2.0  # milliseconds

    class Cache:
        def zero_(self) -> None:
            called.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: called.append("wait"))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Cache())

    def kernel() -> torch.Tensor:
        called.append("run")
        return torch.zeros(1)

    timing = Timing(rounds=2, warm_up=1, sample_seconds=0.004)
    [(seconds, spread)] = time_kernels([kernel], timing, "cuda")
    assert (seconds, spread) == (0.002, 0.0)
    once = ["flush", "event", "run", "event"]
    # A warm-up, one run to see how long it takes, then two samples of 4 ms.
    assert called == ["run", *once, "wait", *(2 * [*once, *once, "wait"])]
