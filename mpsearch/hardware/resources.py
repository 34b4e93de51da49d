"""Resources computed from a layer's shape alone, on no particular device; their costs add up."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.formats import Option, parse_option
from mpsearch.formats.integer import Integer
from mpsearch.menu import Menu
from mpsearch.models.layer import Layer

if TYPE_CHECKING:
    from mpsearch.models.layers import LayerSurvey

__all__ = [
    "Resource",
    "Workload",
    "fixed_memory",
    "known_resources",
    "price_groups",
    "resource",
]

FLOAT = parse_option("float")

_KEYS_OR_VALUES = re.compile(r"(?:.*\.)?(?:k|v|key|value|wk|wv|to_k|to_v)(?:_proj)?")
_FUSED = re.compile(r"(?:.*\.)?(?:qkv|qkv_proj|in_proj|c_attn|query_key_value|wqkv)")


@dataclass(frozen=True)
class Workload:
    """What the model is run on, where a resource depends on it.

    Attributes:
        batch: Inputs that are processed together.
        context: Tokens whose keys and values are kept, for every input.
    """

    batch: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        """Refuse an empty workload.

        Raises:
            InputError: Batch or context are below one.
        """
        for name, value in (("batch", self.batch), ("context", self.context)):
            if value < 1:
                raise InputError(f"{name} {value} must be at least 1")


@dataclass(frozen=True)
class Resource:
    """Something that is spent.

    Attributes:
        name: Its name.
        unit: Base unit of its costs.
        source: Where the formula comes from.
        price: Layer, option, total number of allocated weights, and workload to a cost in `unit`;
            NaN where the formula does not cover the option.
        default: Whether it is priced when nobody asks for it by name.
    """

    name: str
    unit: str
    source: str
    price: Callable[[Layer, Option, int, Workload], float]
    default: bool = True


def _weight_memory(layer: Layer, option: Option, _: int, __: Workload) -> float:
    return layer.weights * option.weight.effective_bits(layer.weight_shape) / 8


def _bops(layer: Layer, option: Option, _: int, __: Workload) -> float:
    return layer.macs * option.weight.bits * option.activation.bits


def _bops_adders(layer: Layer, option: Option, _: int, __: Workload) -> float:
    if not all(
        isinstance(each, Integer) or each.is_float for each in (option.weight, option.activation)
    ):
        return math.nan
    a, b = option.weight.bits, option.activation.bits
    return layer.macs * ((5 * a * b - 5 * a - 3 * b + 3) + (3 * a + 3 * b + 29))


def _average_bits(layer: Layer, option: Option, weights: int, _: Workload) -> float:
    return layer.weights * option.weight.effective_bits(layer.weight_shape) / weights


def _kv_cache_memory(layer: Layer, option: Option, _: int, workload: Workload) -> float:
    values = _kept_per_token(layer) * workload.context * workload.batch
    return values * option.activation.bits / 8


def _kept_per_token(layer: Layer) -> int:
    """Return how many values of this layer's output a decoder keeps of every token."""
    name = layer.name.removesuffix("_weight")
    if layer.kind not in {"linear", "attention"}:
        return 0
    outputs, inputs = layer.weight_shape[0], layer.weight_shape[-1]
    if _KEYS_OR_VALUES.fullmatch(name):
        return outputs
    if not _FUSED.fullmatch(name):
        return 0
    if outputs != 3 * inputs:
        raise InputError(
            f"kv_cache_memory: layer {layer.name} makes queries, keys and values together, "
            f"{outputs} of {inputs} inputs; only three equal parts can be told apart. Split the "
            "layer, or leave this resource out"
        )
    return outputs * 2 // 3


_RESOURCES = {
    entry.name: entry
    for entry in (
        Resource(
            "weight_memory", "B", "packed weights, scales and zero points counted", _weight_memory
        ),
        Resource(
            "bops",
            "BOPs",
            "MACs × weight bits × activation bits for one input; HAWQ-V3 (Yao et al. 2021)",
            _bops,
        ),
        Resource(
            "bops_adders",
            "BOPs",
            "adders for one input: a multiplication of w by a bits takes 5wa - 5w - 3a + 3, its "
            "accumulation 3w + 3a + 29; CLADO (arXiv 2307.05657). Integers only; float as 32 bits",
            _bops_adders,
            default=False,
        ),
        Resource(
            "average_bits",
            "bits",
            "stored bits per allocated weight, scales and zero points counted",
            _average_bits,
        ),
        Resource(
            "kv_cache_memory",
            "B",
            "keys and values of every token of the context, in the activation format of the layer "
            "that makes them; layers are told by their names (k_proj, v_proj, key, value, qkv …)",
            _kv_cache_memory,
            default=False,
        ),
    )
}


def known_resources(*, default: bool = False) -> list[str]:
    """List the additive resources that need no device.

    Args:
        default: List only those that are priced when none is named.

    Returns:
        Their names.
    """
    return [name for name, entry in _RESOURCES.items() if entry.default or not default]


def resource(name: str) -> Resource:
    """Find a resource.

    Args:
        name: Its name.

    Returns:
        The resource.

    Raises:
        UnknownNameError: There is none of this name.
    """
    if name not in _RESOURCES:
        raise UnknownNameError("resource", name, _RESOURCES)
    return _RESOURCES[name]


def price_groups(
    spent: Resource, survey: LayerSurvey, menu: Menu, workload: Workload | None = None
) -> tuple[NDArray[np.float64], float]:
    """Price groups of layers at every option; costs add up over a group.

    Args:
        spent: The resource.
        survey: Layers of the model.
        menu: Groups and options.
        workload: Batch and context; one of each when left out.

    Returns:
        Costs, float64, groups x options, and the cost of all allocated layers in float32.

    Raises:
        InputError: No layer of the model spends the resource at all.
    """
    on = workload or Workload()
    layers = {layer.name: layer for layer in survey.layers}
    allocated = [layers[name] for members in menu.groups.values() for name in members]
    weights = sum(layer.weights for layer in allocated)
    table = np.array(
        [
            [
                math.fsum(spent.price(layers[name], option, weights, on) for name in members)
                for option in menu.options
            ]
            for members in menu.groups.values()
        ],
        dtype=np.float64,
    )
    if spent.name == "kv_cache_memory" and not table.any():
        raise InputError(
            "kv_cache_memory: no layer is named as one that makes keys or values (k_proj, v_proj, "
            "key, value, qkv …); leave this resource out"
        )
    return table, math.fsum(spent.price(layer, FLOAT, weights, on) for layer in allocated)


def fixed_memory(survey: LayerSurvey, menu: Menu) -> float:
    """Count the bytes of what is not allocated, in float32.

    Args:
        survey: Layers of the model.
        menu: Names the skipped layers.

    Returns:
        Bytes of biases, norms, unsupported modules and skipped layers.
    """
    skipped = sum(layer.weights for layer in survey.layers if layer.name in menu.skipped)
    return 4.0 * (survey.fixed_parameters + skipped)
