"""ONNX Runtime as a measured device: the graph, its mixed forms, tables and additivity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.errors import InputError, MismatchError, ModelError
from mpsearch.formats import parse_option
from mpsearch.hardware.additivity import BudgetMet, check_additivity, drift, predicted_latency
from mpsearch.hardware.graph_prices import TO_FLOAT, TO_INT8, graph_prices
from mpsearch.hardware.measure_runtime import conversions_of, measure_runtime
from mpsearch.hardware.mixed_graph import mixed_graph
from mpsearch.hardware.onnx_graph import RuntimeGraph, runtime_graph
from mpsearch.hardware.rounds import Rounds
from mpsearch.hardware.table import Check, CostTable
from mpsearch.menu import Wishes
from mpsearch.models.digits import DigitsResNet
from mpsearch.models.layers import find_layers

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

FEW = Rounds(rounds=6, warm_up=1)


class Forked(nn.Module):
    """Two branches, a sum, a concatenation, an activation without an int8 kernel, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.right = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        left, right = nn.functional.relu6(self.left(x)), self.norm(self.right(x))
        both = torch.cat([torch.relu(left + right), torch.tanh(right)], 1)
        return self.fc(both.mean((2, 3)))


@pytest.fixture(scope="module")
def forked() -> tuple[nn.Module, Tensor, RuntimeGraph]:
    torch.manual_seed(0)
    model, image = Forked().eval(), torch.randn(2, 3, 12, 12)
    return model, image, runtime_graph(model, image)


def _run(data: bytes, image: Tensor) -> np.ndarray:
    session = ort.InferenceSession(
        data, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]


def test_operations_belong_to_the_latest_layer_their_inputs_come_from(forked) -> None:
    _, __, graph = forked
    assert graph.layers == ["stem", "left", "right", "fc"]
    owners = {op.kind: op.owner for op in graph.operations if op.layer is None}
    assert owners["add"] == "right"
    assert owners["concat"] == "right"
    assert owners["tanh"] is None  # no int8 kernel: always float
    # The rectifier after the sum is computed with it, and the batch norm is folded.
    assert not {"relu", "clip", "batchnormalization"} & {op.kind for op in graph.operations}


@pytest.mark.parametrize("narrow", [[], ["stem"], ["left", "fc"], ["stem", "left", "right", "fc"]])
def test_every_mixed_graph_computes_the_model(forked, narrow: list[str]) -> None:
    model, image, graph = forked
    with torch.no_grad():
        exact = model(image).numpy()
    found = _run(mixed_graph(graph, narrow), image)
    # Processors without VNNI saturate some sums of int8 products, hence a wide bound for them.
    bound = 1e-5 if not narrow else 0.25
    assert np.linalg.norm(found - exact) < bound * np.linalg.norm(exact)


@pytest.mark.parametrize("narrow", [["stem"], ["left", "fc"], ["stem", "left", "right", "fc"]])
def test_int8_kernels_run_where_the_allocation_says_and_nowhere_else(
    forked, narrow: list[str], tmp_path: Path
) -> None:
    _, __, graph = forked
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(
        mixed_graph(graph, narrow),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    assert kinds.count("QLinearConv") == len(set(narrow) & {"stem", "left", "right"})
    assert kinds.count("QGemm") == ("fc" in narrow)


def test_converting_edges_are_those_between_unlike_neighbours(forked) -> None:
    _, __, graph = forked
    stem = next(op.number for op in graph.operations if op.layer == "stem")
    last = graph.operations[-1].number
    assert conversions_of(graph, [], stem) == 0
    assert conversions_of(graph, ["stem"], stem) == 2  # both branches read it
    assert conversions_of(graph, ["stem", "left"], stem) == 1
    assert conversions_of(graph, ["stem"], -1) == 1
    assert conversions_of(graph, graph.layers, last) == 1  # the model's output is float


def test_what_is_not_defined_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    with pytest.raises(ModelError, match="runs 2 times"):
        runtime_graph(Twice(), torch.zeros(1, 4))
    with pytest.raises(ModelError, match="int4 weights with int8"):
        measure_runtime(DigitsResNet(), torch.randn(1, 1, 8, 8), ["w4a8"], rounds=FEW)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[nn.Module, Tensor, CostTable]:
    torch.manual_seed(0)
    model, image = DigitsResNet(), torch.randn(2, 1, 8, 8)
    path = tmp_path_factory.mktemp("t") / "t.json"
    table = measure_runtime(
        model, image, ["float", "w8a8", "w4a8"], batch=2, rounds=FEW, save_to=path
    )
    assert CostTable.load(path) == table
    return model, image, table


def test_the_table_prices_layers_what_lies_between_and_conversions(measured) -> None:
    model, image, table = measured
    assert {"conv2d", "linear", "add", TO_INT8, TO_FLOAT} <= set(table.ops)
    assert {m.option for m in table.unavailable} == {"w4a8"}
    assert table.reference_seconds
    layers = {layer.name: layer for layer in find_layers(model, (image[:1], None)).layers}
    graph = runtime_graph(model, image)
    w8a8, plain = parse_option("w8a8"), parse_option("float")
    uniform = predicted_latency(graph, layers, table, dict.fromkeys(layers, w8a8))
    # One float layer among int8 ones pays for its neighbours' conversions.
    one = dict.fromkeys(layers, w8a8) | {"layer2.0.conv1": plain}
    own = {
        option: table.of_shape("conv2d", _keys(layers["layer2.0.conv1"]), option, "latency").value
        for option in ("w8a8", "float")
    }
    prices = graph_prices(graph, table, "latency")
    touching = [e for e in prices.edges if "layer2.0.conv1" in {e.producer, e.consumer}]
    extra = sum(e.to_float if e.consumer == "layer2.0.conv1" else e.to_int8 for e in touching)
    assert len(touching) >= 2
    found = predicted_latency(graph, layers, table, one)
    assert found == pytest.approx(uniform + own["float"] - own["w8a8"] + extra)


def _keys(layer) -> dict[str, int]:
    from mpsearch.hardware.shapes import layer_keys

    return layer_keys(layer, 2)


def test_resuming_keeps_rows_and_refuses_other_conditions(measured) -> None:
    model, image, table = measured
    more = measure_runtime(model, image, ["float"], batch=2, rounds=FEW, known=table)
    assert set(more.options) == {"float", "w8a8"}
    assert len(more.entries) == len(table.entries)
    with pytest.raises(InputError, match="write to another file"):
        measure_runtime(model, image, ["float"], batch=1, rounds=FEW, known=table)


def test_sums_are_compared_with_models_that_are_run(measured) -> None:
    model, image, table = measured
    further = {"mine": dict.fromkeys(runtime_graph(model, image).layers, "w8a8")}
    found = check_additivity(
        model, image, table, name="digits", further=further, mixed=2, rounds=FEW
    )
    names = [check.allocation for check in found.checks]
    assert names == ["uniform float", "uniform w8a8", "mixed 1", "mixed 2", "mine"]
    assert all(check.measured > 0 for check in found.checks)
    kept = table.model_copy(update={"checks": found.checks})
    assert kept.tolerance == {"latency": pytest.approx(found.worst)}
    assert CostTable.checked(kept.model_dump(), "kept").tolerance == kept.tolerance
    with pytest.raises(MismatchError, match="no option for layer"):
        check_additivity(model, image, table, name="d", further={"few": {}}, rounds=FEW)


def test_a_table_of_another_kind_cannot_be_checked(measured) -> None:
    model, image, table = measured
    bare = table.model_copy(update={"entries": [e for e in table.entries if e.op == "conv2d"]})
    with pytest.raises(InputError, match="between layers"):
        check_additivity(model, image, bare, name="d", rounds=FEW)
    moved = table.model_copy(update={"conditions": table.conditions | {"processor": "another"}})
    with pytest.raises(InputError, match="another processor"):
        check_additivity(model, image, moved, name="d", rounds=FEW)


def test_prices_of_a_live_model_sum_to_what_the_check_predicts(measured) -> None:
    """Groups and pairs of groups on one side, operations and edges of the graph on the other."""
    model, image, table = measured
    costs = mp.price(model, image, ["float", "w8a8"], table)
    layers = {layer.name: layer for layer in find_layers(model, (image[:1], None)).layers}
    graph = runtime_graph(model, image)
    generator = np.random.default_rng(0)
    for columns in [np.zeros(10, int), np.ones(10, int), *generator.integers(0, 2, (5, 10))]:
        choice = {
            g: parse_option(costs.options[c]) for g, c in zip(costs.groups, columns, strict=True)
        }
        predicted = predicted_latency(graph, layers, table, choice)
        assert costs.usage("latency", columns) == pytest.approx(predicted)
    everything_float = np.zeros(10, int)
    assert costs.baseline["latency"] == pytest.approx(costs.usage("latency", everything_float))


def test_layers_that_are_not_allocated_are_float_neighbours(measured) -> None:
    model, image, table = measured
    wishes = Wishes(skip=("layer2.0.conv1",))
    costs = mp.price(model, image, ["float", "w8a8"], table, wishes=wishes)
    layers = {layer.name: layer for layer in find_layers(model, (image[:1], None)).layers}
    choice = dict.fromkeys(layers, parse_option("w8a8"))
    choice["layer2.0.conv1"] = parse_option("float")
    predicted = predicted_latency(runtime_graph(model, image), layers, table, choice)
    kernel = table.of_shape("conv2d", _keys(layers["layer2.0.conv1"]), "float", "latency").value
    # The skipped layer's own kernel is no part of what is allocated; its neighbours' changes are.
    found = costs.usage("latency", np.ones(len(costs.groups), int))
    assert found == pytest.approx(predicted - kernel)


def test_a_model_that_cannot_be_exported_keeps_the_prices_of_its_layers(measured) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    _, __, table = measured
    costs = mp.price(Twice(), torch.randn(2, 64), ["float", "w8a8"], table)
    assert not costs.conversions
    assert any("between layers has no price" in warning for warning in costs.warnings)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (1990.0, "within the budget"),
        (2050.0, "above the budget, within the tolerance"),
        (2110.0, "BEYOND the tolerance"),
    ],
)
def test_a_measured_latency_is_judged_by_its_budget_and_tolerance(measured, verdict) -> None:
    found = BudgetMet(measured * 1e-6, limit=0.002, tolerance=0.05)
    assert found.verdict == verdict
    assert str(found).endswith(f"budget 2 ms ± 5.0%: {verdict}")


def test_a_latency_without_a_checked_tolerance_says_so() -> None:
    found = BudgetMet(2.0001e-3, limit=2e-3, tolerance=0.0)
    assert "without a stated tolerance: BEYOND" in str(found)


def test_a_slower_machine_is_told_apart_from_a_slower_model() -> None:
    def checks(slowness: float, **further: float) -> list[Check]:
        taken = {"uniform float": 12.0, "uniform w8a8": 8.0, "mixed 1": 10.0} | further
        return [
            Check(model="m", allocation=name, predicted=1.0, measured=ms * slowness)
            for name, ms in taken.items()
        ]

    # Random allocations may be others under the same name.
    now = [*checks(1.04), Check(model="n", allocation="uniform float", predicted=1, measured=9)]
    pace = drift(now, checks(1.0, **{"mixed 1": 99.0}))
    assert pace == pytest.approx(1.04)
    assert drift(now, []) is None
    found = BudgetMet(2.09e-3, limit=2e-3, tolerance=0.02, drift=pace)
    assert found.verdict == "BEYOND the tolerance"
    assert "take 1.040x what they took then" in str(found)
    assert str(found).endswith("at that pace it is 2.01 ms, above the budget, within the tolerance")
    assert "then" not in str(BudgetMet(2.01e-3, limit=2e-3, tolerance=0.02, drift=pace))
