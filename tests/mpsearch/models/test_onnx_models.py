from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import ModelError
from mpsearch.models.named import InputForm
from mpsearch.models.onnx_scan import OnnxLimits, scan_onnx
from mpsearch.models.registry import as_data, as_model
from mpsearch.models.running import forward

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")


def export(model: nn.Module, inputs: torch.Tensor, path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (inputs,),
            path,
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {0: "batch"}},
        )
    return str(path)


@pytest.fixture(scope="module")
def digits_onnx(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    return export(as_model("digits-resnet").module, torch.zeros(1, 1, 8, 8), path)


def test_the_converted_network_computes_what_the_original_does(digits_onnx) -> None:
    named = as_model(digits_onnx)
    inputs = torch.rand(7, 1, 8, 8)
    assert named.inputs == InputForm((1, 8, 8))
    assert named.notes == ()
    wanted = as_model("digits-resnet").module(inputs)
    torch.testing.assert_close(named.module(inputs), wanted, atol=1e-4, rtol=0)


def test_an_export_gets_the_same_allocation_as_the_original(digits_onnx) -> None:
    # The export folds batch norms into the weights, which scales whole output channels, and so
    # leaves what per-channel rounding does to them as it was.
    options = ["w2a8", "w4a8", "w8a8"]
    rows = []
    for spec in ("digits-resnet", digits_onnx):
        profile = mp.profile(spec, "digits", options, "measured_loss")
        costs = mp.price(spec, "digits", options)
        answer = mp.allocate(profile, costs, budget={"weight_memory": "0.12x"})
        rows.append(list(answer.layers.values()))
        names = list(answer.layers)
    assert len(rows[0]) == 10
    assert rows[0] == rows[1]
    assert names[0] == "conv1_Conv"


def test_products_with_a_stored_matrix_are_linear_layers(tmp_path) -> None:
    torch.manual_seed(0)

    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 6)
            self.second = nn.Linear(6, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu())

    model = Projections()
    inputs = torch.randn(2, 5, 4)  # three axes: exported as MatMul and Add, not as Gemm
    named = as_model(export(model, inputs, tmp_path / "m.onnx"))
    linear = [m for m in named.module.modules() if isinstance(m, nn.Linear)]
    assert [tuple(each.weight.shape) for each in linear] == [(6, 4), (3, 6)]
    torch.testing.assert_close(named.module(inputs), model(inputs))


def test_a_matrix_used_twice_stays_where_both_can_reach_it(tmp_path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.array([[1, 2], [3, 4]], dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
            helper.make_node("MatMul", ["h", "w"], ["k"], name="two"),
            helper.make_node("Add", ["k", "w"], ["y"], name="three"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    named = as_model(str(tmp_path / "m.onnx"))
    x = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    w = torch.tensor(matrix)
    torch.testing.assert_close(named.module(x), x @ w @ w + w)
    assert "exported for batches of 2" in named.notes[0]


def test_counts_of_a_scan_are_those_of_the_parsed_file(digits_onnx) -> None:
    from pathlib import Path

    counts = scan_onnx(Path(digits_onnx))
    proto = onnx.load(digits_onnx)
    inner = sum(each.HasField("t") for node in proto.graph.node for each in node.attribute)
    assert counts.nodes == len(proto.graph.node)
    assert counts.initializers == len(proto.graph.initializer) + inner
    values = sum(len(each.raw_data) for each in proto.graph.initializer)
    assert counts.structure_bytes <= proto.ByteSize() - values
    with pytest.raises(ModelError, match="more than 5 nodes"):
        scan_onnx(Path(digits_onnx), OnnxLimits(nodes=5))


def test_a_missing_file_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(ModelError, match="no ONNX file"):
        as_model(str(tmp_path / "none.onnx"))


def test_a_model_of_two_inputs_takes_them_by_the_names_of_the_file(tmp_path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.fc(x * mask)

    model, x, mask = Two(), torch.randn(4, 3), torch.tensor([[1.0, 0, 1]]).repeat(4, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x, mask), tmp_path / "m.onnx", dynamo=False, input_names=["x:0", "mask:0"]
        )
    named = as_model(str(tmp_path / "m.onnx"))
    # Names in another order, since the order in which a mapping names them must not matter.
    data = as_data({"mask_0": mask, "x_0": x})
    torch.testing.assert_close(forward(named.module, data.inputs), model(x, mask))


def test_what_current_exporters_write_is_lowered_to_what_can_be_converted(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    model = as_model("digits-resnet").module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            tmp_path / "m.onnx",
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=20,
            verbose=False,
        )
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 20
    named = as_model(str(tmp_path / "m.onnx"))
    inputs = torch.rand(7, 1, 8, 8)
    torch.testing.assert_close(named.module(inputs), model(inputs), atol=1e-4, rtol=0)


def _reduction(version: int, inputs: list[str], **attributes: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("ReduceMax", inputs, ["y"], name="reduce", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([2], dtype=np.int64), "axes")],
    )
    opset = [helper.make_opsetid("", version)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("inputs", [["x", "axes"], ["x"]])
def test_reductions_over_axes_that_are_inputs_are_those_over_attributes(
    inputs: list[str], keepdims: int, tmp_path
) -> None:
    (tmp_path / "m.onnx").write_bytes(_reduction(18, inputs, keepdims=keepdims))
    module = as_model(str(tmp_path / "m.onnx")).module
    x = torch.randn(4, 3, 2)
    axes = [2] if len(inputs) > 1 else [0, 1, 2]
    assert torch.equal(module(x), x.amax(axes, keepdim=bool(keepdims)))


def test_what_has_no_older_form_is_named(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(_reduction(18, ["x"], noop_with_empty_axes=1))
    with pytest.raises(ModelError, match=r"ReduceMax \(opset 18\).*opset 17 and less"):
        as_model(str(tmp_path / "m.onnx"))
