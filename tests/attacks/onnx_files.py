"""Files that pretend to be ONNX models, each with one thing wrong. Nothing here is ever stored."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, load_model_from_string, numpy_helper
from safetensors_files import RunsCode

__all__ = ["ATTACKS", "TensorProto", "load_model_from_string", "small_model", "small_network"]

Maker = Callable[[Path], None]


def small_model(nodes: list[NodeProto] | None = None, tensors: list[TensorProto] | None = None):
    """y = relu(x @ w): what every crafted file starts from."""
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    product = helper.make_node("MatMul", ["x", "w"], ["h"], name="product")
    graph = helper.make_graph(
        [product, *(nodes or [helper.make_node("Relu", ["h"], ["y"], name="relu")])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weights, *(tensors or [])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def small_network() -> bytes:
    """y of x [n, 3] by operations whose numbers, when they change, change sizes and work."""
    numbers = {
        "image": [-1, 1, 1, 3],
        "pads": [0, 0, 1, 1, 0, 0, 1, 1],
        "times": [1, 1, 2, 2],
        "flat": [0, -1],
    }
    kernel = np.ones((2, 1, 3, 3), dtype=np.float32)
    tensors = [
        numpy_helper.from_array(np.array(each, dtype=np.int64), name)
        for name, each in numbers.items()
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "image"], ["i"], name="reshape"),
        helper.make_node("Pad", ["i", "pads"], ["p"], name="pad"),
        helper.make_node("Conv", ["p", "kernel"], ["c"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("Tile", ["c", "times"], ["t"], name="tile"),
        helper.make_node("MaxPool", ["t"], ["m"], name="pool", kernel_shape=[2, 2], strides=[1, 1]),
        helper.make_node("Reshape", ["m", "flat"], ["f"], name="flatten"),
        helper.make_node("ReduceSum", ["f"], ["y"], name="sum", keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*tensors, numpy_helper.from_array(kernel, "kernel")],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def _length_delimited(number: int, content: bytes) -> bytes:
    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    return varint(number << 3 | 2) + varint(len(content)) + content


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(RunsCode(path.with_name("canary"))))


def external_data(path: Path) -> None:
    tensor = TensorProto(name="e", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    path.write_bytes(small_model(tensors=[tensor]).SerializeToString())


def external_data_without_location_flag(path: Path) -> None:
    tensor = TensorProto(name="e", dims=[1], data_type=TensorProto.FLOAT)
    tensor.external_data.add(key="location", value="/etc/passwd")
    path.write_bytes(small_model(tensors=[tensor]).SerializeToString())


def external_data_in_an_attribute(path: Path) -> None:
    tensor = TensorProto(name="e", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    nodes = [
        helper.make_node("Relu", ["h"], ["y"]),
        helper.make_node("Constant", [], ["c"], value=tensor),
    ]
    path.write_bytes(small_model(nodes).SerializeToString())


def code_in_a_node_name(path: Path) -> None:
    """Accepted names would be written into Python source by torch.fx."""
    canary = str(path.with_name("canary"))
    name = f'a"), __import__("pathlib").Path("{canary}").touch(), getattr(self, "a'.replace(
        ".", "/"
    )
    nodes = [helper.make_node("GlobalMaxPool", ["h"], ["y"], name=name)]
    path.write_bytes(small_model(nodes).SerializeToString())


def million_empty_nodes(path: Path) -> None:
    path.write_bytes(_length_delimited(7, _length_delimited(1, b"") * 10**6))


def million_empty_tensors(path: Path) -> None:
    path.write_bytes(_length_delimited(7, _length_delimited(5, b"") * 10**6))


def fifty_million_empty_value_infos(path: Path) -> None:
    path.write_bytes(_length_delimited(7, _length_delimited(13, b"") * (50 * 10**6)))


def deep_graphs(path: Path) -> None:
    content = b""
    for _ in range(2000):  # graph { node { attribute { g: graph … } } }
        content = _length_delimited(1, _length_delimited(5, _length_delimited(6, content)))
    path.write_bytes(_length_delimited(7, content))


def packed_integers(path: Path) -> None:
    """100 MB that a parser would unpack to 800."""
    tensor = _length_delimited(7, b"\0" * (100 * 2**20))
    path.write_bytes(_length_delimited(7, _length_delimited(5, tensor)))


def shape_overflow(path: Path) -> None:
    tensor = TensorProto(name="b", dims=[2**40, 2**40], data_type=TensorProto.FLOAT)
    nodes = [helper.make_node("Add", ["h", "b"], ["y"])]
    path.write_bytes(small_model(nodes, [tensor]).SerializeToString())


def nan_weights(path: Path) -> None:
    tensor = numpy_helper.from_array(np.array([np.nan, 0], dtype=np.float32), "b")
    nodes = [helper.make_node("Add", ["h", "b"], ["y"])]
    path.write_bytes(small_model(nodes, [tensor]).SerializeToString())


def foreign_operator(path: Path) -> None:
    nodes = [helper.make_node("PyOp", ["h"], ["y"], domain="ai.onnx.contrib")]
    path.write_bytes(small_model(nodes).SerializeToString())


def hundred_inputs(path: Path) -> None:
    model = small_model()
    for number in range(100):
        info = helper.make_tensor_value_info(f"z{number}", TensorProto.FLOAT, [1])
        model.graph.input.append(info)
    path.write_bytes(model.SerializeToString())


def inputs_of_one_name(path: Path) -> None:
    """Different in the file, the same once they are plain."""
    model = small_model()
    for name in ("a.b", "a/b"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    path.write_bytes(model.SerializeToString())


def endless_varint(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


def truncated(path: Path) -> None:
    path.write_bytes(small_model().SerializeToString()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_graph(path: Path) -> None:
    path.write_bytes(b"\x08\x08")


ATTACKS: dict[str, tuple[Maker, str]] = {
    maker.__name__: (maker, words)
    for maker, words in [
        (pickled, "broken|ends within|no graph"),
        (external_data, "other files"),
        (external_data_without_location_flag, "other files"),
        (external_data_in_an_attribute, "other files"),
        (code_in_a_node_name, r"GlobalMaxPool \(opset 13\)"),
        (million_empty_nodes, "more than 20,000 nodes"),
        (million_empty_tensors, "more than 20,000 tensors"),
        (fifty_million_empty_value_infos, "more than"),
        (deep_graphs, "nested more than 4 deep"),
        (packed_integers, "bytes beside tensor values"),
        (shape_overflow, "cannot be converted"),
        (nan_weights, "NaN"),
        (foreign_operator, r"ai\.onnx\.contrib\.PyOp"),
        (hundred_inputs, "101 inputs"),
        (inputs_of_one_name, "told apart"),
        (endless_varint, "broken"),
        (truncated, "ends within|broken"),
        (empty, "0 bytes"),
        (no_graph, "no graph"),
    ]
}
