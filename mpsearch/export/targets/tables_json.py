"""Plain JSON: every layer with its option spelled out."""

from __future__ import annotations

import json
from typing import Any

from mpsearch.export.protocol import Request
from mpsearch.formats import Format, Integer, parse_option

__all__ = ["describe", "parse", "render"]


def describe(spec: Format) -> dict[str, Any]:
    """Spell a format out.

    Args:
        spec: The format.

    Returns:
        Name, bits of a value, bits of a scale, what shares one, and whether there is a zero point.
    """
    shares = f"group of {spec.block}" if spec.block else "tensor" if spec.per_tensor else "channel"
    return {
        "format": spec.name,
        "bits": spec.bits,
        "scale_bits": spec.scale_bits,
        "scale_per": shares if spec.scale_bits else None,
        "zero_point": isinstance(spec, Integer) and spec.asymmetric,
    }


def render(request: Request) -> str:
    """Write every layer with its option, formats and, where calibrated, the range of its input."""
    answer = request.allocation
    ranges = answer.activation_ranges if answer else {}
    layers: dict[str, dict[str, Any]] = {}
    for layer, option in request.layers.items():
        layers[layer] = {
            "option": option.name,
            "weight": describe(option.weight),
            "activation": describe(option.activation),
        }
        if layer in ranges and not option.activation.is_float:
            layers[layer]["input_range"] = list(ranges[layer])
    document: dict[str, Any] = {"version": 1, "kind": "mpsearch.export", "model": request.name}
    if answer is not None:
        document |= {"status": answer.status, "costs": answer.costs, "units": answer.units}
    return json.dumps({**document, "layers": layers}, indent=1) + "\n"


def parse(text: str) -> dict[str, str]:
    """Read layer -> option."""
    layers = json.loads(text)["layers"]
    return {layer: parse_option(entry["option"]).name for layer, entry in layers.items()}
