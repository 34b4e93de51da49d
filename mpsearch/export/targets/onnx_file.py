"""ONNX Runtime: a QDQ model in one file, and the allocation read from such a file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mpsearch.errors import DependencyError, DocumentError
from mpsearch.export.onnx_qdq import INSTALL, OnnxExport, export_onnx_qdq
from mpsearch.export.protocol import Request
from mpsearch.export.targets.naming import integer_name, option_name, with_sharing
from mpsearch.ranges import activation_formats, known_ranges, saved_ranges, settles

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from mpsearch.engine.quantizer import Ranges

__all__ = ["input_ranges", "read", "read_model", "write", "write_model"]

_INTEGERS = {
    f"{sign}INT{width}": integer_name(width, asymmetric=bool(sign))
    for width in (2, 4, 8, 16)
    for sign in ("", "U")
}
_FLOATS = {
    "FLOAT": "float",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "FLOAT8E4M3FN": "fp8_e4m3",
    "FLOAT8E5M2": "fp8_e5m2",
}


def write(request: Request, path: Path) -> dict[str, int]:
    """Write the model.

    Args:
        request: With model and data.
        path: The file.

    Returns:
        Bytes of the weights, and of everything else.
    """
    written = write_model(request, path)
    return {"weights": written.weights, "fixed": written.fixed}


def write_model(request: Request, path: Path, *, signed_inputs: bool = False) -> OnnxExport:
    """Write the model, with ranges from the allocation or calibrated on the data.

    Args:
        request: With model and data.
        path: The file.
        signed_inputs: As in `onnx_qdq_model`.

    Returns:
        What was written.
    """
    assert request.module is not None
    assert request.data is not None
    layers = {layer: option.name for layer, option in request.layers.items()}
    example = request.data.inputs[:2]
    ranges = input_ranges(request)
    return export_onnx_qdq(
        request.module, example, layers, ranges, path, signed_inputs=signed_inputs
    )


def input_ranges(request: Request) -> Ranges:
    """Give the ranges that the allocation carries, or calibrate where it carries none.

    Args:
        request: With model and data.

    Returns:
        Layer -> range of its input.
    """
    assert request.module is not None
    assert request.data is not None
    saved = saved_ranges(request.allocation) if request.allocation is not None else {}
    formats = activation_formats(request.layers.values())
    needed = [layer for layer, o in request.layers.items() if not o.activation.is_float]
    if not needed or (settles(saved, formats) and set(needed) <= set(saved)):
        return saved
    return known_ranges(request.module, needed, request.data.batches(), formats)


def read(path: Path) -> dict[str, str]:
    """Read the allocation from the types of the tensors in a file.

    Args:
        path: What `write` wrote.

    Returns:
        Layer -> option.

    Raises:
        DependencyError: onnx is not installed.
        DocumentError: The file is no ONNX model.
    """
    try:
        import onnx

        broken = importlib.import_module("google.protobuf.message").DecodeError
    except ImportError as error:
        raise DependencyError(f"reading ONNX needs {error.name}; run: {INSTALL}") from error
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except broken as error:
        raise DocumentError(f"{path} is no ONNX model: {error}") from error
    return read_model(model)


def read_model(model: ModelProto) -> dict[str, str]:
    """Read the allocation from the types of the tensors in a model.

    Args:
        model: What `onnx_qdq_model` made.

    Returns:
        Layer -> option; layers are the nodes that read a tensor `….weight` under their own name.
    """
    graph = _Reader(model)
    layers = [name.removesuffix(".weight") for name in graph.types if name.endswith(".weight")]
    return {layer: graph.option(layer) for layer in layers if layer in graph.nodes}


class _Reader:
    """Looks up types of tensors and makers of values."""

    def __init__(self, model: ModelProto) -> None:
        from onnx import TensorProto, numpy_helper

        self.types = {
            t.name: TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer
        }
        self.scalars = {
            t.name: numpy_helper.to_array(t) for t in model.graph.initializer if not t.dims
        }
        self.nodes = {node.name: node for node in model.graph.node}
        self.makers = {out: node for node in model.graph.node for out in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def option(self, layer: str) -> str:
        """Name the option of a layer."""
        stored = f"{layer}.weight"
        element = {**_INTEGERS, **_FLOATS}[self.types[stored]]
        group, whole = None, False
        for node in self.readers.get(stored, []):
            if node.op_type == "DequantizeLinear":
                group = next((a.i for a in node.attribute if a.name == "block_size"), 0) or None
                whole = node.input[1] in self.scalars
        return option_name(with_sharing(element, group, tensor=whole), self._input(layer))

    def _input(self, layer: str) -> str:
        for name in self.nodes[layer].input:
            maker = self.makers.get(name)
            before = self.makers.get(maker.input[0]) if maker else None
            if maker is None or before is None or name.startswith(f"{layer}.weight"):
                continue
            if (before.op_type, maker.op_type) == ("QuantizeLinear", "DequantizeLinear"):
                return self._codes(before.input[2])
            if (before.op_type, maker.op_type) == ("Cast", "Cast"):
                from onnx import TensorProto

                kind = next(a.i for a in before.attribute if a.name == "to")
                return _FLOATS[TensorProto.DataType.Name(kind)]
        return "float"

    def _codes(self, zero_point: str) -> str:
        """Name the grid of an input; unsigned bytes around 128 are symmetric."""
        kind = self.types[zero_point]
        if kind == "UINT8" and int(self.scalars[zero_point]) == 128:
            return "int8"
        return {**_INTEGERS, **_FLOATS}[kind]
