"""The estimators by name: what each one is, torch-free, and how to build it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpsearch.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from mpsearch.sensitivity.protocol import Estimator

__all__ = ["EstimatorInfo", "build", "info", "known", "register"]


@dataclass(frozen=True)
class EstimatorInfo:
    """What a reader needs to know to choose an estimator.

    Attributes:
        name: Name of the estimator.
        summary: What it computes, in one sentence.
        passes: Work it does on a model of L layers with B options.
        source: Where the method comes from.
        scores_activations: Whether it sees the error of quantized activations.
        implementation: `module:Class`, imported on use.
    """

    name: str
    summary: str
    passes: str
    source: str
    scores_activations: bool
    implementation: str


_CATALOG: dict[str, EstimatorInfo] = {}


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
        InputError: It has no such setting, or a value is refused.
    """
    module, _, attribute = info(name).implementation.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    try:
        estimator: Estimator = made(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"estimator {name}: {error}") from error
    return estimator


register(
    EstimatorInfo(
        name="gradient_deviation",
        summary="Inner product of the loss gradient with the quantization error of weights and "
        "activations, in absolute value",
        passes="1 forward + 1 backward over the data for all layers and options",
        source="first-order Taylor term, after AutoRound's DeltaLoss and SignRoundV2",
        scores_activations=True,
        implementation="mpsearch.sensitivity.gradient:GradientDeviation",
    )
)
register(
    EstimatorInfo(
        name="ggn_trace",
        summary="Mean Gauss-Newton trace of a layer (the Fisher with labels drawn from the model) "
        "times its squared weight quantization error",
        passes="1 forward + K backward passes without weight gradients over the data",
        source="Martens 2020, JMLR 21, 'New insights and perspectives on the natural gradient'",
        scores_activations=False,
        implementation="mpsearch.sensitivity.fisher:GgnTrace",
    )
)
register(
    EstimatorInfo(
        name="empirical_fisher",
        summary="Mean squared gradient of single inputs in weights and activations times the "
        "noise of quantization",
        passes="1 forward + 1 backward over the data for all layers and options",
        source="FIT, Zandonati et al. 2022, arXiv 2210.08502",
        scores_activations=True,
        implementation="mpsearch.sensitivity.fisher:EmpiricalFisher",
    )
)
register(
    EstimatorInfo(
        name="fisher_output",
        summary="Squared loss gradient in a layer's output times the squared error that the "
        "option makes there",
        passes="1 forward + 1 backward without weight gradients (K without labels) + 1 forward of "
        "each layer alone per option",
        source="BRECQ, Li et al. 2021, arXiv 2102.05426; NVIDIA ModelOpt's gradient score",
        scores_activations=True,
        implementation="mpsearch.sensitivity.output_error:FisherOutput",
    )
)
register(
    EstimatorInfo(
        name="hessian_trace",
        summary="Mean Hessian trace in a layer's weight and input times the squared quantization "
        "error there",
        passes="1 gradient graph + K Hessian-vector products over the data, all layers at once",
        source="HAWQ-V2, Dong et al. 2020, arXiv 1911.03852; Hutchinson 1990",
        scores_activations=True,
        implementation="mpsearch.sensitivity.hessian:HessianTrace",
    )
)
register(
    EstimatorInfo(
        name="measured_loss",
        summary="Measured loss increase with one layer at the option and all others in float",
        passes="1 + L·B forward passes over the data",
        source="CalibTIP, Hubara et al. 2021, arXiv 2006.10518",
        scores_activations=True,
        implementation="mpsearch.sensitivity.measured:MeasuredLoss",
    )
)
