"""Applying an allocation to a model: as a copy, in place, or for the length of a context."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from mpsearch.engine.activations import RangeRule
from mpsearch.engine.calibration import calibrate, observe
from mpsearch.engine.correction import correct_biases, reestimate_batchnorms
from mpsearch.engine.marking import mark_quantized, refuse_quantized
from mpsearch.engine.quantizer import Quantizer, Ranges, layer_module, layer_weight
from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Format, Option, parse_option
from mpsearch.formats.calibration import Method
from mpsearch.models.dataset import DataSet
from mpsearch.models.layers import Layer
from mpsearch.models.registry import ModelLike, as_data, as_model
from mpsearch.ranges import activation_formats, known_ranges, saved_ranges
from mpsearch.schemas import Allocation

__all__ = [
    "Quantizer",
    "RangeRule",
    "apply",
    "calibrate",
    "layer_module",
    "layer_weight",
    "observe",
    "quantized",
    "restore",
    "weight_deviation",
]

Choice = Allocation | Mapping[str, str] | Mapping[str, Option]

_APPLIED: weakref.WeakKeyDictionary[nn.Module, ExitStack] = weakref.WeakKeyDictionary()


def apply(
    model: ModelLike,
    allocation: Choice,
    data: object = None,
    *,
    inplace: bool = False,
    calibration: Method = "minmax",
    percentile: float = 99.99,
    correct_bias: bool = False,
    reestimate_batchnorm: bool = False,
) -> nn.Module:
    """Fake-quantize a model: a copy of it, or the model itself until `restore`.

    Args:
        model: The float model, in any form `mpsearch.profile` takes; not changed unless `inplace`.
        allocation: An allocation, or layer -> option, by name or parsed.
        data: What to calibrate activation ranges on, in any form `mpsearch.profile` takes; by
            default the allocation's own ranges are used.
        inplace: Change the model itself; `restore` takes it back, for which the float weights are
            kept.
        calibration: How activation ranges are chosen on the data: `minmax`, `percentile`, or `mse`.
        percentile: For `percentile`: share of the values kept on each side, in percent.
        correct_bias: Add to biases what quantization took from each output channel's mean, layer
            by layer in order of execution (Nagel et al. 2019, arXiv 1906.04721, section 4.2, with
            measured means); needs data.
        reestimate_batchnorm: Measure the statistics of every batch norm again on the quantized
            model (Wu & Johnson 2021, arXiv 2105.07576, section 3); needs data.

    Returns:
        The model whose weights carry quantized values and whose layers quantize their inputs.

    Raises:
        InputError: Something needs data and none was given; a ModelError where the model was
            quantized in place before and not restored, cannot be copied, or has a weight that is
            NaN or infinite in a layer to be rounded.
    """
    named = as_model(model)
    model = named.module
    refuse_quantized(model)
    dataset = None if data is None else as_data(data, model=named)  # type: ignore[arg-type]
    if dataset is None and (correct_bias or reestimate_batchnorm):
        raise InputError("correct_bias and reestimate_batchnorm measure the model: give data")
    if dataset is None and calibration != "minmax":
        raise InputError(f"calibration={calibration!r} chooses ranges on data: give data")
    changed = model if inplace else _copied(model)
    rule = RangeRule(calibration, percentile)
    quantizer = _quantizer(changed, allocation, dataset, rule)
    choice = _choice(allocation)
    with ExitStack() as undo:
        if correct_bias:
            assert dataset is not None
            undo.enter_context(correct_biases(quantizer, choice, dataset))
        undo.enter_context(quantizer.put_on(choice))
        if reestimate_batchnorm:
            assert dataset is not None
            undo.enter_context(reestimate_batchnorms(changed, dataset))
        if inplace:
            undo.enter_context(mark_quantized(model))
        kept = undo.pop_all()
    if inplace:
        _APPLIED[model] = kept
    return changed


def restore(model: nn.Module) -> nn.Module:
    """Take off what `apply(model, …, inplace=True)` put on.

    Args:
        model: The model that was quantized in place.

    Returns:
        The same model, with its float weights, biases and statistics, bit for bit.

    Raises:
        InputError: The model is not quantized in place.
    """
    undo = _APPLIED.pop(model, None)
    if undo is None:
        raise InputError(
            f"this {type(model).__name__} was not quantized with apply(…, inplace=True); a copy "
            "that apply made has no float weights to go back to"
        )
    undo.close()
    return model


@contextmanager
def quantized(
    model: ModelLike,
    allocation: Choice,
    data: object = None,
    *,
    calibration: Method = "minmax",
    percentile: float = 99.99,
) -> Iterator[nn.Module]:
    """Run a model with an allocation on it, and get it back as it was.

    Contexts can be nested: of two formats for one weight the inner one holds, on the float weight;
    an input is rounded by both. Ranges that an inner context calibrates are those of the model as
    the outer one left it.

    Args:
        model: The float model.
        allocation: An allocation, or layer -> option.
        data: What to calibrate activation ranges on; by default the allocation's own ranges.
        calibration: As in `apply`.
        percentile: As in `apply`.

    Yields:
        The same model, fake-quantized inside the context.
    """
    named = as_model(model)
    model = named.module
    refuse_quantized(model, nested=True)
    dataset = None if data is None else as_data(data, model=named)  # type: ignore[arg-type]
    quantizer = _quantizer(model, allocation, dataset, RangeRule(calibration, percentile))
    with (
        quantizer.options(_choice(allocation)) as changed,
        mark_quantized(model, for_now=True),
    ):
        yield changed


def weight_deviation(quantizer: Quantizer, layer: Layer, weight_format: Format) -> Tensor:
    """Compute how far quantization moves a layer's weight, Q(W) - W.

    Args:
        quantizer: Holds the model.
        layer: The layer.
        weight_format: Format of the weight.

    Returns:
        The deviation, in the stored weight's shape.
    """
    return quantizer.weight(layer.name, weight_format) - quantizer.original(layer.name)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, NotImplementedError, pickle.PicklingError) as error:
        raise ModelError(
            f"this {type(model).__name__} cannot be copied ({str(error).splitlines()[0]}); old "
            "weight_norm and pruning have to be removed first, anything else can be quantized "
            "with apply(…, inplace=True) or for the length of mpsearch.quantized(…)"
        ) from error


def _choice(allocation: Choice) -> dict[str, Option]:
    layers = allocation.layers if isinstance(allocation, Allocation) else allocation
    if not isinstance(layers, Mapping):
        raise InputError(
            "give an allocation, or a mapping of layers to options such as {'fc': 'w4a8'}, not "
            f"{type(layers).__name__} {layers!r}"
        )
    return {
        layer: option if isinstance(option, Option) else parse_option(option)
        for layer, option in layers.items()
    }


def _quantizer(
    model: nn.Module, allocation: Choice, data: DataSet | None, rule: RangeRule
) -> Quantizer:
    ranges: Ranges = {}
    if data is not None:
        choice = _choice(allocation)
        needed = [layer for layer, o in choice.items() if not o.activation.is_float]
        if rule.method == "minmax":
            formats = activation_formats(choice.values())
            ranges = known_ranges(model, needed, data.batches(), formats)
        else:
            ranges = observe(model, needed, data.batches())
    elif isinstance(allocation, Allocation):
        ranges = saved_ranges(allocation)
    return Quantizer(model, ranges, rule=rule)
