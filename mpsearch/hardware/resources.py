"""Resources computed from a layer's shape alone, on no particular device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UnknownNameError
from mpsearch.formats import Option, parse_option
from mpsearch.menu import Menu
from mpsearch.models.layers import Layer, LayerSurvey

__all__ = ["Resource", "fixed_memory", "known_resources", "price_groups", "resource"]

FLOAT = parse_option("float")


@dataclass(frozen=True)
class Resource:
    """Something that is spent.

    Attributes:
        name: Its name.
        unit: Base unit of its costs.
        source: Where the formula comes from.
        price: Layer, option and total number of allocated weights to a cost in `unit`.
    """

    name: str
    unit: str
    source: str
    price: Callable[[Layer, Option, int], float]


def _weight_memory(layer: Layer, option: Option, _: int) -> float:
    return layer.weights * option.weight.effective_bits(layer.weight_shape) / 8


def _bops(layer: Layer, option: Option, _: int) -> float:
    return layer.macs * option.weight.bits * option.activation.bits


def _average_bits(layer: Layer, option: Option, weights: int) -> float:
    return layer.weights * option.weight.effective_bits(layer.weight_shape) / weights


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
            "average_bits",
            "bits",
            "stored bits per allocated weight, scales and zero points counted",
            _average_bits,
        ),
    )
}


def known_resources() -> list[str]:
    """List the resources that need no device.

    Returns:
        Their names.
    """
    return list(_RESOURCES)


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
    spent: Resource, survey: LayerSurvey, menu: Menu
) -> tuple[NDArray[np.float64], float]:
    """Price groups of layers at every option; costs add up over a group.

    Args:
        spent: The resource.
        survey: Layers of the model.
        menu: Groups and options.

    Returns:
        Costs, float64, groups x options, and the cost of all allocated layers in float32.
    """
    layers = {layer.name: layer for layer in survey.layers}
    allocated = [layers[name] for members in menu.groups.values() for name in members]
    weights = sum(layer.weights for layer in allocated)
    table = np.array(
        [
            [
                math.fsum(spent.price(layers[name], option, weights) for name in members)
                for option in menu.options
            ]
            for members in menu.groups.values()
        ],
        dtype=np.float64,
    )
    return table, math.fsum(spent.price(layer, FLOAT, weights) for layer in allocated)


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
