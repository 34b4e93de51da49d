"""Nodes that round and restore, run by ONNX's own reference implementation."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from mpsearch.onnx_nodes import constant, restoring, rounding  # noqa: E402


def _run(nodes, initializers, entered, left: str, axes: int = 2):
    inputs = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * axes)] if entered else []
    )
    outputs = [helper.make_tensor_value_info(left, TensorProto.FLOAT, [None] * axes)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    return ReferenceEvaluator(model).run(None, entered)[0]


def test_values_are_rounded_to_the_grid_and_saturate_at_its_ends() -> None:
    grid = [constant("s", np.float32(0.5)), constant("z", np.uint8(10))]
    nodes = rounding("x", ("s", "z"), "codes", "back")
    assert [node.name for node in nodes] == ["codes", "back"]
    values = np.array([-9.0, -5.0, 0.0, 0.3, 1.74, 200.0], np.float32)
    found = _run(nodes, grid, {"x": values}, "back", axes=1)
    assert found.tolist() == [-5.0, -5.0, 0.0, 0.5, 1.5, 122.5]


def test_codes_are_restored_channel_by_channel_and_block_by_block() -> None:
    codes = constant("c", np.array([[1, -2, 3, -4], [5, 6, 7, 8]], np.int8))
    channels = constant("s", np.array([0.5, 2.0], np.float32))
    found = _run([restoring(["c", "s"], "y", axis=0)], [codes, channels], {}, "y")
    assert found.tolist() == [[0.5, -1.0, 1.5, -2.0], [10.0, 12.0, 14.0, 16.0]]
    blocks = constant("s", np.array([[1.0, 10.0], [100.0, 0.5]], np.float32))
    node = restoring(["c", "s"], "y", axis=1, block_size=2)
    found = _run([node], [codes, blocks], {}, "y")
    assert found.tolist() == [[1.0, -2.0, 30.0, -40.0], [500.0, 600.0, 3.5, 4.0]]


def test_a_constant_keeps_its_type_and_lies_in_order() -> None:
    values = np.arange(6, dtype=np.int8).reshape(2, 3).T
    stored = constant("c", values)
    assert stored.name == "c"
    assert np.array_equal(onnx.numpy_helper.to_array(stored), values)
    assert stored.data_type == TensorProto.INT8
