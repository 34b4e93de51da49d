"""The config groups of compressed-tensors, which vLLM, llm-compressor and transformers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpsearch.export.targets.naming import integer_name, option_name, with_sharing
from mpsearch.formats import Format, Integer, Option

__all__ = ["config_groups", "groups_of", "options_of"]

Group = dict[str, Any]


def groups_of(layers: Mapping[str, Option]) -> tuple[dict[str, Group], list[str]]:
    """Gather the layers of each option.

    Args:
        layers: Layer -> option.

    Returns:
        Group -> its scheme and the names of its layers, and the layers that stay float.
    """
    ignored = [layer for layer, option in layers.items() if option.is_float]
    members: dict[Any, list[str]] = {}
    for layer, option in layers.items():
        if not option.is_float:
            members.setdefault(option.key, []).append(layer)
    groups = {}
    for number, names in enumerate(members.values()):
        groups[f"group_{number}"] = {"targets": names, **_scheme(layers[names[0]])}
    return groups, ignored


def config_groups(layers: Mapping[str, Option], **fields: object) -> dict[str, Any]:
    """Write a whole quantization_config.

    Args:
        layers: Layer -> option.
        **fields: Further fields, such as `quantization_status`.

    Returns:
        The dictionary.
    """
    groups, ignored = groups_of(layers)
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        **fields,
        "config_groups": groups,
        "ignore": ignored,
    }


def options_of(groups: Mapping[str, Group], ignored: list[str]) -> dict[str, str]:
    """Read what `groups_of` wrote.

    Args:
        groups: The config groups.
        ignored: The layers that stay float.

    Returns:
        Layer -> option.
    """
    layers = dict.fromkeys(ignored, "float")
    for group in groups.values():
        activation = group.get("input_activations")
        name = option_name(
            _format(group["weights"]), _format(activation, is_input=True) if activation else "float"
        )
        layers |= dict.fromkeys(group["targets"], name)
    return layers


def _scheme(option: Option) -> Group:
    activation = option.activation
    scheme: Group = {
        "weights": _arguments(option.weight),
        "input_activations": None if activation.is_float else _arguments(activation, is_input=True),
        "output_activations": None,
    }
    return {**scheme, "format": _storage(option)}


def _storage(option: Option) -> str:
    """Name the layout of stored weights, as compressed-tensors itself chooses it."""
    inputs = not option.activation.is_float
    if isinstance(option.weight, Integer):
        return "int-quantized" if inputs else "pack-quantized"
    return "float-quantized" if inputs else "naive-quantized"


def _arguments(spec: Format, *, is_input: bool = False) -> Group:
    integer = isinstance(spec, Integer)
    strategy = "group" if spec.block else "tensor" if is_input or spec.per_tensor else "channel"
    return {
        "num_bits": spec.width if isinstance(spec, Integer) else 8,
        "type": "int" if integer else "float",
        "symmetric": not (isinstance(spec, Integer) and spec.asymmetric),
        "strategy": strategy,
        "group_size": spec.block,
        "dynamic": False,
    }


def _format(arguments: Group, *, is_input: bool = False) -> str:
    group = arguments["group_size"] if arguments["strategy"] == "group" else None
    tensor = arguments["strategy"] == "tensor" and not is_input
    if arguments["type"] == "int":
        return integer_name(
            arguments["num_bits"], group, asymmetric=not arguments["symmetric"], tensor=tensor
        )
    if arguments["num_bits"] != 8:
        raise ValueError(f"no format of mpsearch is a float of {arguments['num_bits']} bits here")
    return with_sharing("fp8_e4m3", group, tensor=tensor)
