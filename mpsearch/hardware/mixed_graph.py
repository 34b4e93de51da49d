"""The graph of a mixed allocation: int8 where a layer is int8, rounded and restored in between.

Pairs of QuantizeLinear and DequantizeLinear stand around what is computed in int8, the form that
ONNX Runtime turns into int8 kernels (ONNX Runtime documentation, "Quantize ONNX models",
quantize-dequantize format). Weights are signed and symmetric per output channel, activations
unsigned with a zero point per tensor, calibrated on the example of the graph. The graph is made to
be timed: it follows the arithmetic of an allocation, not its formats' finer points.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.hardware.onnx_graph import MULTIPLY, RuntimeGraph, TensorFacts, onnx_modules

__all__ = ["mixed_graph"]


def mixed_graph(graph: RuntimeGraph, narrow: Collection[str]) -> bytes:
    """Write the graph in which some layers, and what belongs to them, are computed in int8.

    Args:
        graph: The float model.
        narrow: Layers that are int8.

    Returns:
        A serialized ONNX model; node names still begin with `op<number>/`.
    """
    if not narrow:
        data: bytes = graph.proto.SerializeToString()
        return data
    onnx_modules()
    return _Rewriter(graph, frozenset(narrow)).model()


class _Rewriter:
    def __init__(self, graph: RuntimeGraph, narrow: frozenset[str]) -> None:
        import onnx

        from mpsearch import onnx_nodes

        self._onnx, self._make = onnx, onnx_nodes
        self._graph = graph
        self._narrow = narrow
        self._constants = {
            each.name: onnx.numpy_helper.to_array(each) for each in graph.proto.graph.initializer
        }
        self._made: dict[str, Any] = {}
        self._nodes: list[Any] = []
        self._restored: dict[str, str] = {}
        self._scales: dict[str, float] = {}
        self._maker = {op.output: op.number for op in graph.operations} | {graph.input: -1}

    def model(self) -> bytes:
        """Rewrite node by node, in execution order."""
        source = self._graph.proto
        for node in source.graph.node:
            self._rewrite(node)
        model = self._onnx.ModelProto()
        model.CopyFrom(source)
        del model.graph.node[:]
        del model.graph.initializer[:]
        model.graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        model.graph.initializer.extend(x for x in source.graph.initializer if x.name in used)
        model.graph.initializer.extend(self._made.values())
        for each in model.graph.output:
            each.name = self._restored.get(each.name, each.name)
        data: bytes = model.SerializeToString()
        return data

    def _is_narrow(self, number: int) -> bool:
        return self._graph.owner_of(number) in self._narrow

    def _rewrite(self, original: Any) -> None:  # noqa: ANN401
        node = self._onnx.NodeProto()
        node.CopyFrom(original)
        number = int(node.name.partition("/")[0].removeprefix("op"))
        operation = self._graph.operations[number]
        narrow = self._is_narrow(number)
        for position, name in enumerate(node.input):
            maker = self._maker.get(name)
            if maker is None or maker == number:
                continue  # a constant, or what a fused activation function reads
            if self._is_narrow(maker):
                node.input[position] = self._restored[name]
            elif narrow:
                node.input[position] = self._round_trip(name, self._graph.facts_of(maker))
        if narrow and operation.layer is not None and node.op_type in MULTIPLY:
            self._round_weight(node)
        self._nodes.append(node)
        if narrow and node.output[0] == operation.output:
            self._round_trip(operation.output, operation.size)

    def _round_trip(self, tensor: str, facts: TensorFacts) -> str:
        """Round a tensor to uint8 and back, once, however many read it."""
        if tensor in self._restored:
            return self._restored[tensor]
        low, high = min(facts.low, 0.0), max(facts.high, 0.0)
        scale = max((high - low) / 255, 1e-8)
        zero = int(np.clip(round(-low / scale), 0, 255))
        self._scales[tensor] = scale
        step = self._constant(f"{tensor}/scale", np.float32(scale))
        offset = self._constant(f"{tensor}/zero", np.uint8(zero))
        rounded, back = f"{tensor}/uint8", f"{tensor}/back"
        self._nodes += self._make.rounding(tensor, (step, offset), rounded, back)
        self._restored[tensor] = back
        return back

    def _round_weight(self, node: Any) -> None:  # noqa: ANN401
        weight = np.asarray(self._constants[node.input[1]], dtype=np.float32)
        axis = 1 if node.op_type == "MatMul" or not _transposed(node) else 0
        others = tuple(a for a in range(weight.ndim) if a != axis)
        scale = np.maximum(np.abs(weight).max(axis=others), 1e-8).astype(np.float32) / 127
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        codes = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
        entered = self._scales[node.input[0].removesuffix("/back")]
        node.input[1] = self._restore(f"{node.name}/weight", codes, scale, axis)
        if len(node.input) > 2 and node.input[2]:
            step = (scale * np.float32(entered)).astype(np.float32)
            bias = np.rint(np.asarray(self._constants[node.input[2]], np.float64) / step)
            limits = np.iinfo(np.int32)
            whole = np.clip(bias, limits.min, limits.max).astype(np.int32)
            node.input[2] = self._restore(f"{node.name}/bias", whole, step, 0)

    def _restore(
        self, name: str, codes: NDArray[Any], scale: NDArray[np.float32], axis: int
    ) -> str:
        zero = np.zeros(len(scale), codes.dtype)
        stored = [
            self._constant(f"{name}/codes", codes),
            self._constant(f"{name}/scale", scale),
            self._constant(f"{name}/zero", zero),
        ]
        self._nodes.append(self._make.restoring(stored, f"{name}/back", axis=axis))
        return f"{name}/back"

    def _constant(self, name: str, value: Any) -> str:  # noqa: ANN401
        self._made[name] = self._make.constant(name, value)
        return name


def _transposed(node: Any) -> bool:  # noqa: ANN401
    """Tell whether output channels lie on the first axis of the weight."""
    if node.op_type == "Conv":
        return True
    return any(each.name == "transB" and each.i for each in node.attribute)
