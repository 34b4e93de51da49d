"""NVIDIA ModelOpt: the `quant_cfg` list of `mtq.quantize`, as a Python literal.

A literal, because the keys of `block_sizes` are integers and minifloats are tuples, which JSON has
not. Entries are applied in order, so the first one switches every quantizer off.
"""

from __future__ import annotations

import pprint
from typing import Any

from mpsearch.export.protocol import Request
from mpsearch.export.targets.naming import integer_name, option_name, with_sharing
from mpsearch.export.targets.python_literal import read_literal
from mpsearch.formats import Format, Integer, get

__all__ = ["parse", "render"]

NAME = "QUANT_CFG"
_BLOCKS: dict[str, dict[str, Any]] = {
    "mxfp4": {"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
    "mxfp8": {"num_bits": (4, 3), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}},
    "nvfp4": {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}},
}


def render(request: Request) -> str:
    """Write one entry for every quantizer that is on, and one that switches off the float ones."""
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for layer, option in request.layers.items():
        for part, spec in (("weight", option.weight), ("input", option.activation)):
            name = f"{layer}.{part}_quantizer"
            if spec.is_float:
                entries.append({"quantizer_name": name, "enable": False})
            else:
                cfg = _attributes(spec, is_weight=part == "weight")
                entries.append({"quantizer_name": name, "cfg": cfg, "enable": True})
    literal = pprint.pformat(
        {"quant_cfg": entries, "algorithm": "max"}, width=100, sort_dicts=False
    )
    return (
        f'"""{request.name}: mtq.quantize(model, {NAME}, forward_loop)."""\n\n{NAME} = {literal}\n'
    )


def parse(text: str) -> dict[str, str]:
    """Read layer -> option; the file is read as a literal and never run."""
    found: dict[str, dict[str, str]] = {}
    for entry in read_literal(text)["quant_cfg"]:
        layer, _, quantizer = entry["quantizer_name"].rpartition(".")
        if not layer:
            continue
        on = entry.get("enable", True)
        is_input = quantizer == "input_quantizer"
        name = _format(entry["cfg"], is_input=is_input) if on else "float"
        found.setdefault(layer, {})[quantizer] = name
    return {
        layer: option_name(parts["weight_quantizer"], parts["input_quantizer"])
        for layer, parts in found.items()
    }


def _attributes(spec: Format, *, is_weight: bool) -> dict[str, Any]:
    for name, cfg in _BLOCKS.items():
        if spec == get(name):
            return dict(cfg)
    bits = spec.width if isinstance(spec, Integer) else (4, 3)
    if spec.block:
        return {"num_bits": bits, "block_sizes": {-1: spec.block, "type": "static"}}
    return {"num_bits": bits, "axis": 0 if is_weight and not spec.per_tensor else None}


def _format(cfg: dict[str, Any], *, is_input: bool) -> str:
    for name, known in _BLOCKS.items():
        if cfg == known:
            return name
    bits, blocks = cfg["num_bits"], cfg.get("block_sizes") or {}
    # An input has one scale per tensor anyway; of a weight, a missing axis says so.
    tensor = not is_input and not blocks and cfg["axis"] is None
    if isinstance(bits, int):
        return integer_name(bits, blocks.get(-1), tensor=tensor)
    return with_sharing("fp8_e4m3", blocks.get(-1), tensor=tensor)
