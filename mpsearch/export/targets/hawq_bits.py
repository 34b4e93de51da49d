"""HAWQ: the `bit_config` of its quantized ResNets, as a Python literal.

Names are those of HAWQ's `bit_config.py` (Yao et al. 2021, HAWQ-V3, arXiv 2011.10680): the weights
of a convolution with its batch norm, and the activation in front of it. The sums of residual blocks
have 16 bits there, always.
"""

from __future__ import annotations

import pprint
import re
from collections.abc import Mapping

from mpsearch.errors import InputError
from mpsearch.export.protocol import Request
from mpsearch.export.targets.naming import integer_name, option_name
from mpsearch.export.targets.python_literal import read_literal
from mpsearch.formats import Integer

__all__ = ["parse", "render"]

NAME = "bit_config_dict"
_SUM = 16
_UNIT = re.compile(r"layer(\d+)\.(\d+)\.(?:conv(\d)|(downsample)\.0)")
_KEY = re.compile(r"stage(\d+)\.unit(\d+)\.(?:quant_convbn(\d)|(quant_identity_convbn))")
_ENDS = {
    "conv1": ("quant_init_block_convbn", "quant_input"),
    "fc": ("quant_output", "quant_act_output"),
}


def render(request: Request) -> str:
    """Write the bits of every weight and activation under HAWQ's names.

    Args:
        request: Layers of a ResNet.

    Returns:
        The text of a Python module.

    Raises:
        InputError: Layers have other names than torchvision's ResNets, or two layers read one
            activation and want different bits for it.
    """
    unknown = [layer for layer in request.layers if _keys(layer) is None]
    if unknown:
        raise InputError(
            f"hawq has no names for {len(unknown)} layers: {', '.join(unknown[:8])}"
            f"{', …' if len(unknown) > 8 else ''}; it knows ResNets: conv1, layerN.M.convK, "
            "layerN.M.downsample.0, fc"
        )
    bits: dict[str, int] = {}
    readers: dict[str, str] = {}
    for layer, option in request.layers.items():
        weight, activation = _keys(layer) or ("", "")
        assert isinstance(option.weight, Integer)
        assert isinstance(option.activation, Integer)
        width = option.activation.width
        if bits.get(activation, width) != width:
            other = readers[activation]
            raise InputError(
                f"hawq cannot express {layer}: {option.name} beside {other}: "
                f"{request.layers[other].name}; both read {activation}, which has one width. "
                f"Nearest: {option_name(option.weight.name, f'int{bits[activation]}')} for {layer}"
            )
        bits |= {activation: width, weight: option.weight.width}
        readers.setdefault(activation, layer)
        unit = _UNIT.fullmatch(layer)
        total = f"stage{unit[1]}.unit{int(unit[2]) + 1}." if unit else ""
        bits[f"{total}quant_act_int32"] = _SUM
    literal = pprint.pformat({f"bit_config_{request.name}": bits}, sort_dicts=False)
    return f"{NAME} = {literal}\n"


def parse(text: str) -> dict[str, str]:
    """Read layer -> option; the file is read as a literal and never run."""
    bits: Mapping[str, int] = next(iter(read_literal(text).values()))
    found = {}
    for key in bits:
        layer = _layer(key)
        if layer is not None:
            activation = bits[(_keys(layer) or ("", ""))[1]]
            found[layer] = option_name(integer_name(bits[key]), integer_name(activation))
    return found


def _keys(layer: str) -> tuple[str, str] | None:
    """Names of a layer's weight and of the activation in front of it."""
    unit = _UNIT.fullmatch(layer)
    if unit is None:
        return _ENDS.get(layer)
    prefix = f"stage{unit[1]}.unit{int(unit[2]) + 1}."
    if unit[4]:
        return f"{prefix}quant_identity_convbn", f"{prefix}quant_act"
    before = int(unit[3]) - 1
    return f"{prefix}quant_convbn{unit[3]}", f"{prefix}quant_act{before or ''}"


def _layer(key: str) -> str | None:
    unit = _KEY.fullmatch(key)
    if unit is None:
        return next((layer for layer, (weight, _) in _ENDS.items() if weight == key), None)
    block = f"layer{unit[1]}.{int(unit[2]) - 1}."
    return f"{block}downsample.0" if unit[4] else f"{block}conv{unit[3]}"
