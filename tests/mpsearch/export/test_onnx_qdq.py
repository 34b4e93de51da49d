"""ONNX Runtime runs what was exported: same values, stored in the formats asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import InputError, ModelError
from mpsearch.export import export, read
from mpsearch.export.onnx_qdq import export_onnx_qdq, onnx_qdq_model
from mpsearch.formats import parse_option
from mpsearch.models.dataset import DataSet
from mpsearch.models.digits import digits, digits_resnet
from mpsearch.models.fields import pack_fields
from mpsearch.models.kinds import weight_sites
from mpsearch.models.layers import find_layers
from mpsearch.models.running import forward
from tests.mpsearch.engine.trained_models import efficientnet_lite0, photos

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session(path, *, plain: bool = False):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        # Without VNNI, x86 kernels of bytes add up in 16 bits; this chooses those that do not.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def outputs(path, inputs, **keywords):
    run = session(path, **keywords)
    return run.run(None, {run.get_inputs()[0].name: inputs.numpy()})[0]


def decibels(reference, found) -> float:
    reference = np.asarray(reference, np.float64)
    error = ((reference - found) ** 2).sum()
    return math.inf if error == 0 else 10 * math.log10((reference**2).sum() / error)


def predicted_bytes(model, data, layers) -> float:
    return sum(
        layer.weights
        * parse_option(layers[layer.name]).weight.effective_bits(layer.weight_shape)
        / 8
        for layer in find_layers(model, next(data.batches())).layers
    )


def alternating(model, options) -> dict[str, str]:
    names = list(weight_sites(model).by_name)
    return {name: options[place % len(options)] for place, name in enumerate(names)}


@pytest.mark.parametrize(
    "options", [("w8a8", "float"), ("w8a8", "w4a8", "w4", "float"), ("w:int8/a:int8_asym",)]
)
def test_digits_resnet_runs_as_the_fake_quantized_model_does(tmp_path, options):
    pytest.importorskip("sklearn")
    model, data = digits_resnet(), digits()
    layers = alternating(model, options)
    path = tmp_path / "digits.onnx"
    written = export(layers, "onnxruntime", path, model=model, data=data)
    with torch.no_grad():
        ours = mp.apply(model, layers, data)(data.held_out_inputs).numpy()
    found = outputs(path, data.held_out_inputs)
    assert decibels(ours, found) >= 30
    assert decibels(ours, outputs(path, data.held_out_inputs, plain=True)) >= 30
    labels = data.held_out_targets.numpy()
    right = [(logits.argmax(1) == labels).sum() for logits in (ours, found)]
    assert abs(int(right[0]) - int(right[1])) <= 1
    assert written.sizes["weights"] + written.sizes["fixed"] == path.stat().st_size
    predicted = predicted_bytes(model, data, layers)
    assert path.stat().st_size == pytest.approx(predicted + written.sizes["fixed"], rel=0.02)
    assert written.sizes["weights"] == pytest.approx(predicted, rel=0.02)
    same = {layer: parse_option(o).key for layer, o in read(path, "onnxruntime").items()}
    assert same == {layer: parse_option(option).key for layer, option in layers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("options", [("w8a8", "float"), ("w8a8", "float", "w4", "float")])
def test_efficientnet_lite0_runs_as_the_fake_quantized_model_does(tmp_path, options):
    model = efficientnet_lite0()
    data = DataSet("photos", *photos())
    layers = alternating(model, options)
    path = tmp_path / "lite0.onnx"
    written = export(layers, "onnxruntime", path, model=model, data=data)
    with torch.no_grad():
        ours = mp.apply(model, layers, data)(data.inputs).numpy()
    found = outputs(path, data.inputs)
    assert decibels(ours, found) >= 30
    labels = data.targets.numpy()
    right = [(logits.argmax(1) == labels).sum() for logits in (ours, found)]
    assert abs(int(right[0]) - int(right[1])) <= 1
    predicted = predicted_bytes(model, data, layers)
    assert path.stat().st_size == pytest.approx(predicted + written.sizes["fixed"], rel=0.02)
    assert written.sizes["weights"] == pytest.approx(predicted, rel=0.02)


def test_every_format_of_onnx_runs_and_is_read_back(tmp_path):
    pytest.importorskip("sklearn")
    model, data = digits_resnet(), digits()
    layers = alternating(
        model,
        (
            *("w4a8", "w:int2/a:int8_asym", "int4_g32", "w:fp8_e4m3/a:fp8_e4m3"),
            *("w:fp16/a:fp16", "w:bf16/a:int16", "int4_asym", "int8_tensor", "float"),
            "w:int8_asym_g16/a:int4_asym",
        ),
    )
    path = tmp_path / "all.onnx"
    export(layers, "onnx", path, model=model, data=data)
    with torch.no_grad():
        ours = mp.apply(model, layers, data)(data.held_out_inputs[:64]).numpy()
    assert decibels(ours, outputs(path, data.held_out_inputs[:64])) >= 60
    same = {layer: parse_option(o).key for layer, o in read(path, "onnx").items()}
    assert same == {layer: parse_option(option).key for layer, option in layers.items()}


def test_codes_are_stored_in_the_type_of_the_format(tmp_path):
    pytest.importorskip("sklearn")
    model, data = digits_resnet(), digits()
    layers = {"conv1": "w8a8", "fc": "w4"}
    path = tmp_path / "model.onnx"
    written = export(layers, "onnxruntime", path, model=model, data=data)
    proto = onnx.load(path)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert stored["conv1.weight"].data_type == onnx.TensorProto.INT8
    assert stored["fc.weight"].data_type == onnx.TensorProto.INT4
    assert len(stored["fc.weight"].raw_data) == 640 // 2
    assert stored["layer1.0.conv1.weight"].data_type == onnx.TensorProto.FLOAT
    assert [node.op_type for node in proto.graph.node].count("BatchNormalization") == 0
    assert written.notes
    ranged = session(path).get_inputs()[0].shape[0]
    assert isinstance(ranged, str)  # any number of images


class Odd(nn.Module):
    """Layers whose weights do not lie with output channels first, or are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.up = nn.ConvTranspose1d(16, 8, 3)
        self.grouped = nn.ConvTranspose1d(8, 8, 3, groups=2)
        self.pool = nn.AdaptiveAvgPool1d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        y = self.pool(self.grouped(self.up(x.transpose(1, 2))))
        z, _ = self.attention(y, y, y, need_weights=False)
        return self.head(self.linear(z).mean(1))


@pytest.mark.parametrize(
    "layers",
    [
        {
            "up": "w8a8",
            "grouped": "w4a8",
            "attention.in_proj_weight": "w8a8",
            "attention.out_proj": "w8",
            "linear": "w8a8",
            "table": "w4",
        },
        {"up": "int8_g4", "grouped": "int4_g5", "linear": "int4_g8", "table": "w:fp16/a:float"},
    ],
)
def test_weights_of_every_layout_and_tied_weights_run_in_onnx_runtime(tmp_path, layers):
    torch.manual_seed(0)
    model = Odd().eval()
    ids = torch.randint(0, 20, (6, 12))
    data = DataSet("ids", ids)
    path = tmp_path / "odd.onnx"
    export(layers, "onnxruntime", path, model=model, data=data)
    with torch.no_grad():
        ours = mp.apply(model, layers, data)(ids).numpy()
    assert decibels(ours, outputs(path, ids, plain=True)) >= 60
    assert decibels(ours, outputs(path, ids)) >= 30
    assert sum(t.name == "table.weight" for t in onnx.load(path).graph.initializer) == 1


def test_models_of_several_named_inputs_keep_the_names(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(4, 8)
            self.right = nn.Linear(6, 8)

        def forward(self, first, second):
            return self.left(first) + self.right(second)

    torch.manual_seed(0)
    model = Two().eval()
    fields = {"first": torch.randn(8, 4), "second": torch.randn(8, 6)}
    data = DataSet("two", pack_fields(fields))
    layers = {"left": "w8a8", "right": "w4a8"}
    path = tmp_path / "two.onnx"
    export(layers, "onnxruntime", path, model=model, data=data)
    with torch.no_grad():
        ours = mp.apply(model, layers, data)(**fields).numpy()
    feeds = {name: values.numpy() for name, values in fields.items()}
    assert decibels(ours, session(path).run(None, feeds)[0]) >= 30


def test_channels_of_zeros_keep_their_bias(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[3].weight[5] = 0
        model[1].weight[4] = 0
        model[1].weight[6] *= -1
        model[1].running_var.mul_(1e-3)
        model[1].bias.normal_()
    model.eval()
    data = DataSet("noise", torch.randn(16, 3, 9, 9))
    for option in ("w8a8", "w:int8_asym/a:int8_asym", "w:fp8_e4m3/a:float"):
        layers = {"0": option, "3": option}
        path = tmp_path / "zeros.onnx"
        export(layers, "onnxruntime", path, model=model, data=data)
        with torch.no_grad():
            ours = mp.apply(model, layers, data)(data.inputs).numpy()
        assert decibels(ours, outputs(path, data.inputs, plain=True)) >= 60
        assert decibels(ours, outputs(path, data.inputs)) >= 30


def test_ranges_of_a_saved_allocation_are_used_as_they_are(tmp_path):
    pytest.importorskip("sklearn")
    model, data = digits_resnet(), digits()
    answer = mp.search(
        model, data, ["w4a8", "w8a8"], {"weight_memory": "60%"}, estimator="sqnr", verified=False
    )
    saved = tmp_path / "allocation.json"
    answer.save(saved)
    path = tmp_path / "model.onnx"
    export(saved, "onnxruntime", path, model=model, data=DataSet("one", data.inputs[:1]))
    proto = onnx.load(path)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    low, high = answer.activation_ranges["conv1"]
    assert float(stored["conv1.input_scale"]) == pytest.approx(max(-low, high) / 127)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"linear": "w8a8"}, "no calibrated input range"),
        ({"linear": "w:mxfp4/a:float"}, "codes with one scale|not stored"),
        ({"linear": "w:int8/a:int8_g4"}, "blocks of values"),
        ({"attention.out_proj": "w8a8"}, "inside a call"),
    ],
)
def test_what_onnx_cannot_hold_is_refused_by_layer(layers, message):
    ids = torch.randint(0, 20, (2, 12))
    ranges = {"attention.out_proj": (-1.0, 1.0)} if "attention.out_proj" in layers else {}
    with pytest.raises(InputError, match=message):
        onnx_qdq_model(Odd().eval(), ids, layers, ranges)


def test_recurrent_layers_and_models_torch_cannot_export_are_refused(tmp_path):
    recurrent = nn.LSTM(4, 4)
    with pytest.raises(InputError, match="buffer of several"):
        onnx_qdq_model(recurrent, torch.randn(2, 3, 4), {"weight_ih_l0": "w8"})

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) if float(x.sum()) > 0 else x

    with pytest.raises(ModelError, match="torch cannot export Branching"):
        export_onnx_qdq(Branching(), torch.randn(2, 4), {"linear": "w8"}, None, tmp_path / "x.onnx")


def test_a_model_quantized_in_place_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    mp.apply(model, {"0": "w4"}, inplace=True)
    with pytest.raises(ModelError, match="quantized in place"):
        onnx_qdq_model(model, torch.randn(2, 4), {"0": "w8"})
    assert forward(model, torch.randn(2, 4)).shape == (2, 4)
