"""The estimators by name, torch-free, and how to build and add them."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.sensitivity.entries import ENTRIES, EstimatorInfo

if TYPE_CHECKING:
    from mpsearch.sensitivity.protocol import Estimator

__all__ = ["EstimatorInfo", "build", "info", "known", "register"]


_CATALOG: dict[str, EstimatorInfo] = {entry.name: entry for entry in ENTRIES}


def register(entry: EstimatorInfo) -> EstimatorInfo:
    """Add an estimator to the catalog.

    Args:
        entry: Its description; the class it names is imported when first built.

    Returns:
        The entry.

    Raises:
        InputError: Another estimator has this name.
    """
    if entry.name in _CATALOG:
        raise InputError(f"estimator {entry.name!r} is registered already")
    _CATALOG[entry.name] = entry
    return entry


def known() -> list[EstimatorInfo]:
    """List every estimator.

    Returns:
        Their descriptions, by name.
    """
    return [_CATALOG[name] for name in sorted(_CATALOG)]


def info(name: str) -> EstimatorInfo:
    """Describe one estimator.

    Args:
        name: Its name.

    Returns:
        Its description.

    Raises:
        UnknownNameError: No estimator has this name.
    """
    if name not in _CATALOG:
        raise UnknownNameError("estimator", name, _CATALOG)
    return _CATALOG[name]


def build(name: str, settings: dict[str, Any]) -> Estimator:
    """Make an estimator.

    Args:
        name: Its name.
        settings: Keyword arguments of its class.

    Returns:
        The estimator.

    Raises:
        UnknownNameError: It has no such setting.
        InputError: A value is refused.
    """
    module, _, attribute = info(name).implementation.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    known_settings = [
        parameter
        for parameter in inspect.signature(made.__init__).parameters
        if parameter != "self"
    ]
    unknown = sorted(set(settings) - set(known_settings))
    if unknown:
        raise UnknownNameError(f"setting of estimator {name}", unknown[0], known_settings)
    try:
        estimator: Estimator = made(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"estimator {name}: {error}") from error
    return estimator
