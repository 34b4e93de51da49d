"""compressed-tensors: a checkpoint of a transformers model, with codes, scales and config.json.

Layout of the tensors: compressed-tensors 0.20, `int-quantized` (one byte per code),
`pack-quantized` (codes of 2 to 8 bits side by side in 32-bit words, least significant bits first,
shifted to start at zero), `float-quantized` and `naive-quantized` (float8).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.engine.activations import MINMAX, settled
from mpsearch.errors import DependencyError, ModelError
from mpsearch.export.codes import encode
from mpsearch.export.protocol import Request
from mpsearch.export.targets.config_groups import config_groups, options_of
from mpsearch.export.targets.onnx_file import input_ranges
from mpsearch.formats import Format, Integer, Option
from mpsearch.models.kinds import weight_sites
from mpsearch.schemas.document import write_atomically

if TYPE_CHECKING:
    from torch import nn

__all__ = ["pack_codes", "read", "write"]

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def write(request: Request, path: Path) -> dict[str, int]:
    """Write the checkpoint.

    Args:
        request: With a model of transformers, and data where its ranges are not known.
        path: The folder.

    Returns:
        Bytes of the layers' weights, and of all other tensors.

    Raises:
        DependencyError: safetensors is not installed.
        ModelError: The model has no config, so it is not of transformers.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise DependencyError(
            "a checkpoint needs safetensors; run: pip install 'mpsearch[torch]'"
        ) from error
    assert request.module is not None
    prefix, body = _pretrained(request.module)
    state = {name: t.detach().cpu().contiguous() for name, t in body.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in state.items()}
    ranges = input_ranges(request)
    layers = {}
    weights = 0
    for layer, option in request.layers.items():
        site = weight_sites(request.module).find(request.module, layer)
        name = site.name.removeprefix(prefix)
        layers[name] = option
        weight = state.pop(f"{name}.weight")
        stored = {"weight": weight} if option.is_float else _weight(option, weight)
        weights += sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        if not option.activation.is_float:
            stored |= _input(*settled(option.activation, ranges[site.name], MINMAX))
        state |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
    content = save(state, metadata={"format": "pt"})
    config: dict[str, Any] = body.config.to_dict()  # type: ignore[union-attr, operator]
    config["architectures"] = [type(body).__name__]
    config["quantization_config"] = config_groups(layers, quantization_status="compressed")
    write_atomically(path / WEIGHTS, content)
    write_atomically(path / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    return {"weights": weights, "fixed": len(content) - weights}


def read(path: Path) -> dict[str, str]:
    """Read the allocation from the checkpoint's config.json.

    Args:
        path: The folder.

    Returns:
        Layer -> option.
    """
    config = json.loads((path / CONFIG).read_text())["quantization_config"]
    return options_of(config["config_groups"], config["ignore"])


def pack_codes(codes: Tensor, width: int) -> Tensor:
    """Put codes side by side into 32-bit words, row by row.

    Args:
        codes: Signed codes, (rows, values).
        width: Bits of a code, 1 to 8.

    Returns:
        int32, (rows, words): code i starts at bit i·width, shifted by 2^(width - 1).
    """
    shifted = (codes.numpy() + (1 << (width - 1))).astype(np.uint8)
    bits = np.unpackbits(shifted[..., None], axis=-1, count=width, bitorder="little")
    bits = bits.reshape(len(shifted), -1)
    words = -(-bits.shape[1] // 32)
    padded = np.zeros((len(shifted), words * 32), np.uint8)
    padded[:, : bits.shape[1]] = bits
    packed = np.packbits(padded, axis=1, bitorder="little")
    return torch.from_numpy(packed.view("<i4").astype(np.int32))


def _pretrained(module: nn.Module) -> tuple[str, nn.Module]:
    """Find the model of transformers: the module itself, or the only one that it wraps."""
    found = [
        (f"{name}." if name else "", each)
        for name, each in module.named_modules()
        if hasattr(each, "config") and hasattr(each, "save_pretrained")
    ]
    if not found:
        raise ModelError(
            f"{type(module).__name__} is no model of transformers: it has no config for config.json"
        )
    return found[0]


def _weight(option: Option, weight: Tensor) -> dict[str, Tensor]:
    spec = option.weight
    codes = encode(spec, weight)
    scales = codes.scales.reshape(1) if spec.per_tensor else codes.scales
    stored = {"weight_scale": scales.to(weight.dtype)}
    if not isinstance(spec, Integer):
        return {"weight": codes.values.to(torch.float8_e4m3fn), **stored}
    if not option.activation.is_float:
        return {"weight": codes.values.to(torch.int8), **stored}
    stored["weight_shape"] = torch.tensor(weight.shape)
    stored["weight_packed"] = pack_codes(_signed(codes.values, spec), spec.width)
    if codes.zero_points is not None:
        zeros = _signed(codes.zero_points, spec)
        stored["weight_zero_point"] = pack_codes(zeros.T.contiguous(), spec.width).T.contiguous()
    return stored


def _signed(codes: Tensor, spec: Integer) -> Tensor:
    return codes - (1 << (spec.width - 1)) if spec.asymmetric else codes


def _input(spec: Format, low: float, high: float) -> dict[str, Tensor]:
    ends = torch.tensor([[low, high]], dtype=torch.float32)
    params = spec.kernel().from_range(ends[:, :1], ends[:, 1:])
    stored = {"input_scale": params[0].reshape(1)}
    if isinstance(spec, Integer) and spec.asymmetric:
        zero = (-params[1]).round().to(torch.int32) - (1 << (spec.width - 1))
        stored["input_zero_point"] = zero.to(torch.int8).reshape(1)
    return stored
