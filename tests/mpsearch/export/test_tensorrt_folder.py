"""The folder for TensorRT: a model with signed, symmetric Q/DQ pairs and a flag for every layer."""

from __future__ import annotations

import json

import pytest
import torch

from mpsearch.errors import InputError
from mpsearch.export import export, read
from mpsearch.models.digits import digits, digits_resnet
from mpsearch.models.kinds import weight_sites

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("sklearn")


def test_model_precisions_and_flags_agree(tmp_path):
    model, data = digits_resnet(), digits()
    names = list(weight_sites(model).by_name)
    options = ("w8a8", "float", "w:fp16/a:fp16", "w:fp8_e4m3/a:fp8_e4m3", "int4_g64")
    layers = {name: options[place % 4] for place, name in enumerate(names)} | {"fc": options[4]}
    folder = tmp_path / "engine"
    written = export(layers, "tensorrt", folder, model=model, data=data)
    assert written.files == ("layer_precisions.json", "model.onnx", "trtexec.flags")
    assert read(folder, "tensorrt") == {**layers, "fc": "w4"}  # rows of 64: one group is a row
    precisions = json.loads((folder / "layer_precisions.json").read_text())
    assert [precisions[name] for name in names[:4]] == ["int8", "fp32", "fp16", "fp8"]
    flags = (folder / "trtexec.flags").read_text()
    assert "--precisionConstraints=obey" in flags
    assert '"conv1":int8' in flags
    assert "--fp8" in flags.splitlines()
    proto = onnx.load(folder / "model.onnx")
    nodes = {node.name for node in proto.graph.node}
    assert set(names) <= nodes  # the names that the flags use
    stored = {t.name: t for t in proto.graph.initializer}
    zero = stored["conv1.input_zero_point"]
    assert zero.data_type == onnx.TensorProto.INT8
    assert not onnx.numpy_helper.to_array(zero).any()


def test_zero_points_and_existing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="nearest: w8a8"):
        export(
            {"fc": "w:int8/a:int8_asym"},
            "tensorrt",
            tmp_path / "engine",
            model=digits_resnet(),
            data=torch.ones(2, 1, 8, 8),
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        export(
            {"fc": "w8a8"},
            "tensorrt",
            tmp_path / "file",
            model=digits_resnet(),
            data=torch.ones(2, 1, 8, 8),
        )
