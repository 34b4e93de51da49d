"""NVIDIA TensorRT: a Q/DQ ONNX model, and the precision of every layer as flags of trtexec.

Q/DQ pairs decide where integers are computed; the flags make the other layers' precision explicit,
and `obey` makes the build fail rather than choose another one (TensorRT documentation, "Working
with quantized types" and trtexec). Layers of the network are called as the nodes are, which carry
the layers' names.
"""

from __future__ import annotations

import json
from pathlib import Path

from mpsearch.export.protocol import Request
from mpsearch.export.targets.onnx_file import read as read_onnx
from mpsearch.export.targets.onnx_file import write_model
from mpsearch.formats import Integer, Option
from mpsearch.schemas.document import write_atomically

__all__ = ["read", "write"]

MODEL = "model.onnx"
PRECISIONS = "layer_precisions.json"
FLAGS = "trtexec.flags"


def write(request: Request, path: Path) -> dict[str, int]:
    """Write model, precisions and flags into a folder.

    Args:
        request: With model and data.
        path: The folder.

    Returns:
        Bytes of the weights in the model, and of the rest of it.
    """
    written = write_model(request, path / MODEL, signed_inputs=True)
    precisions = {layer: _precision(option) for layer, option in request.layers.items()}
    write_atomically(path / PRECISIONS, (json.dumps(precisions, indent=1) + "\n").encode())
    types = sorted({kind for kind in precisions.values() if kind != "fp32"})
    pairs = ",".join(f'"{layer}":{kind}' for layer, kind in precisions.items())
    flags = [
        f"--onnx={MODEL}",
        *(f"--{kind}" for kind in types),
        "--precisionConstraints=obey",
        f"--layerPrecisions={pairs}",
    ]
    write_atomically(path / FLAGS, ("\n".join(flags) + "\n").encode())
    return {"weights": written.weights, "fixed": written.fixed}


def read(path: Path) -> dict[str, str]:
    """Read the allocation back from the model in the folder.

    Args:
        path: The folder.

    Returns:
        Layer -> option.
    """
    return read_onnx(path / MODEL)


def _precision(option: Option) -> str:
    """Name the type that TensorRT computes in."""
    if option.is_float:
        return "fp32"
    if option.activation.is_float:
        return "fp16"  # 4-bit weights are unpacked for products of halves
    if isinstance(option.weight, Integer):
        return "int8"
    return {"fp16": "fp16", "bf16": "bf16"}.get(option.weight.name, "fp8")
