"""Intel AutoRound: `layer_config`, one dictionary of scheme fields per layer."""

from __future__ import annotations

import json
from typing import Any

from mpsearch.export.protocol import Request
from mpsearch.export.targets.naming import integer_name, option_name, with_sharing
from mpsearch.formats import Format, Integer, Option, get

__all__ = ["parse", "render"]

_CHANNEL = -1
_TENSOR = 0
_BLOCKS = {"mxfp4": ("mx_fp", 4, 32), "mxfp8": ("mx_fp", 8, 32), "nvfp4": ("nv_fp", 4, 16)}


def render(request: Request) -> str:
    """Write the fields of every layer; 16 bits leave it alone."""
    layers = {layer: _fields(option) for layer, option in request.layers.items()}
    return json.dumps(layers, indent=1) + "\n"


def parse(text: str) -> dict[str, str]:
    """Read layer -> option."""
    return {
        layer: option_name(
            _format(*(fields[key] for key in ("data_type", "bits", "group_size", "sym"))),
            _format(
                fields["act_data_type"],
                fields["act_bits"],
                fields["act_group_size"],
                fields["act_sym"],
                activation=True,
            ),
        )
        for layer, fields in json.loads(text).items()
    }


def _fields(option: Option) -> dict[str, Any]:
    kind, bits, group, symmetric = _words(option.weight)
    act_kind, act_bits, act_group, act_symmetric = _words(option.activation)
    return {
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "data_type": kind,
        "act_bits": act_bits,
        "act_group_size": act_group,
        "act_sym": act_symmetric,
        "act_data_type": act_kind,
        "act_dynamic": True,
    }


def _words(spec: Format) -> tuple[str, int, int, bool]:
    for name, (kind, bits, group) in _BLOCKS.items():
        if spec == get(name):
            return kind, bits, group, True
    if spec.is_float:
        return "float", 16, _CHANNEL, True
    group = spec.block or (_TENSOR if spec.per_tensor else _CHANNEL)
    if isinstance(spec, Integer):
        return "int", spec.width, group, not spec.asymmetric
    return "fp", 8, group, True


def _format(
    kind: str,
    bits: int,
    group: int,
    symmetric: bool,
    *,
    activation: bool = False,
) -> str:
    if bits >= 16:
        return "float"
    for name, words in _BLOCKS.items():
        if (kind, bits, group) == words:
            return name
    blocks = group if group > 0 else None
    tensor = group == _TENSOR and not activation
    if kind == "int":
        return integer_name(bits, blocks, asymmetric=not symmetric, tensor=tensor)
    if (kind, bits) == ("fp", 8):
        return with_sharing("fp8_e4m3", blocks, tensor=tensor)
    raise ValueError(f"no format of mpsearch is {kind} of {bits} bits in groups of {group}")
