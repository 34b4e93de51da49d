"""Applying options to a model's layers, reversibly, and calibrating what that needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from mpsearch.errors import InputError, MismatchError, ModelError
from mpsearch.formats import Format, Option, parse_option
from mpsearch.models.dataset import Batch, DataSet
from mpsearch.models.layers import Layer, evaluation_mode, forward
from mpsearch.models.registry import as_data
from mpsearch.schemas import Allocation

__all__ = ["Quantizer", "apply", "calibrate", "layer_module", "quantized"]

Ranges = Mapping[str, tuple[float, float]]


def layer_module(model: nn.Module, name: str) -> nn.Module:
    """Find a layer's module.

    Args:
        model: The model.
        name: Fully qualified name.

    Returns:
        The module.

    Raises:
        MismatchError: The model has no such module, or it has no weight.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise MismatchError(f"{type(model).__name__} has no layer {name!r}") from error
    if not isinstance(getattr(module, "weight", None), Tensor):
        raise MismatchError(f"{name} ({type(module).__name__}) has no weight to quantize")
    return module


def calibrate(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Batch]
) -> dict[str, tuple[float, float]]:
    """Record the range of every layer's input over the data, in one pass for all options.

    Args:
        model: The float model.
        layers: Names of the layers to watch.
        batches: Calibration inputs.

    Returns:
        Layer -> (smallest, largest) input value.

    Raises:
        ModelError: An input is NaN or infinite.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            smallest, largest = (float(x) for x in torch.aminmax(inputs[0]))
            low[name] = min(low.get(name, smallest), smallest)
            high[name] = max(high.get(name, largest), largest)

        return observe

    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        for name in layers:
            handle = layer_module(model, name).register_forward_pre_hook(watch(name))
            hooks.callback(handle.remove)
        for inputs, _ in batches:
            forward(model, inputs)
    for name, smallest in low.items():
        if not (math.isfinite(smallest) and math.isfinite(high[name])):
            raise ModelError(f"the input of layer {name} is not finite on this data")
    return {name: (low[name], high[name]) for name in layers if name in low}


class Quantizer:
    """Puts options on a model's layers and takes them off; each weight is quantized once.

    The model's own parameters are exchanged for quantized ones while options are on, and put back
    after, so nothing is copied but the quantized weights, which are kept for the next time.
    """

    def __init__(self, model: nn.Module, ranges: Ranges) -> None:
        """Start with every layer in float.

        Args:
            model: The float model; changed only inside `options`.
            ranges: Calibrated input range of each layer; needed by options that quantize
                activations.
        """
        self.model = model
        self._ranges = ranges
        self._weights: dict[tuple[str, Format], Tensor] = {}

    def weight(self, layer: str, weight_format: Format) -> Tensor:
        """Quantize a layer's weight, or give what was computed before.

        Args:
            layer: Name of the layer.
            weight_format: Format of the weight.

        Returns:
            The fake-quantized weight, of the original's shape and type.
        """
        key = (layer, weight_format)
        if key not in self._weights:
            with torch.no_grad():
                original = layer_module(self.model, layer).weight
                assert isinstance(original, Tensor)
                self._weights[key] = weight_format.fake_quantize(original.detach(), channel_axis=0)
        return self._weights[key]

    def activation(self, layer: str, activation_format: Format) -> Callable[[Tensor], Tensor]:
        """Make the function that quantizes a layer's input with its calibrated range.

        Args:
            layer: Name of the layer.
            activation_format: Format of the input.

        Returns:
            Tensor to tensor of the same shape and type.

        Raises:
            InputError: The layer's input range was never calibrated.
        """
        if layer not in self._ranges:
            raise InputError(
                f"layer {layer} has no calibrated input range for {activation_format.name}; "
                "give the data to calibrate on"
            )
        low, high = self._ranges[layer]
        return activation_format.quantizer(low, high)

    @contextmanager
    def options(self, choice: Mapping[str, Option]) -> Iterator[nn.Module]:
        """Run the model with options on some layers; all others stay in float.

        Args:
            choice: Layer -> option.

        Yields:
            The model, quantized until the context is left, by an exception too.
        """
        with ExitStack() as undo:
            for layer, option in choice.items():
                module = layer_module(self.model, layer)
                if not option.weight.is_float:
                    parameter = module.weight
                    assert isinstance(parameter, Tensor)
                    undo.callback(setattr, parameter, "data", parameter.data)
                    parameter.data = self.weight(layer, option.weight)
                if not option.activation.is_float:
                    quantize = self.activation(layer, option.activation)
                    handle = module.register_forward_pre_hook(_InputQuantizer(quantize))
                    undo.callback(handle.remove)
            yield self.model


class _InputQuantizer:
    """Forward pre-hook that quantizes the first input; a class, so that copies can be pickled."""

    def __init__(self, quantize: Callable[[Tensor], Tensor]) -> None:
        self._quantize = quantize

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self._quantize(inputs[0]), *inputs[1:])


def _choice(allocation: Allocation | Mapping[str, str]) -> dict[str, Option]:
    layers = allocation.layers if isinstance(allocation, Allocation) else allocation
    return {layer: parse_option(option) for layer, option in layers.items()}


def _ranges(
    model: nn.Module, allocation: Allocation | Mapping[str, str], data: DataSet | None
) -> Ranges:
    if data is not None:
        return calibrate(model, list(_choice(allocation)), data.batches())
    return allocation.activation_ranges if isinstance(allocation, Allocation) else {}


@contextmanager
def quantized(
    model: nn.Module,
    allocation: Allocation | Mapping[str, str],
    data: object = None,
) -> Iterator[nn.Module]:
    """Run a model with an allocation on it, and get it back as it was.

    Args:
        model: The float model.
        allocation: An allocation, or layer -> option.
        data: What to calibrate activation ranges on, in any form `mpsearch.profile` takes;
            by default the allocation's own ranges are used.

    Yields:
        The same model, fake-quantized inside the context.
    """
    dataset = None if data is None else as_data(data)  # type: ignore[arg-type]
    quantizer = Quantizer(model, _ranges(model, allocation, dataset))
    with quantizer.options(_choice(allocation)) as changed:
        yield changed


def apply(
    model: nn.Module,
    allocation: Allocation | Mapping[str, str],
    data: object = None,
) -> nn.Module:
    """Make a fake-quantized copy of a model.

    Args:
        model: The float model; not changed.
        allocation: An allocation, or layer -> option.
        data: What to calibrate activation ranges on; by default the allocation's own ranges.

    Returns:
        A copy whose weights carry quantized values and whose layers quantize their inputs.
    """
    clone = copy.deepcopy(model)
    dataset = None if data is None else as_data(data)  # type: ignore[arg-type]
    quantizer = Quantizer(clone, _ranges(clone, allocation, dataset))
    for layer, option in _choice(allocation).items():
        module = layer_module(clone, layer)
        if not option.weight.is_float:
            assert isinstance(module.weight, Tensor)
            module.weight.data = quantizer.weight(layer, option.weight).clone()
        if not option.activation.is_float:
            quantize = quantizer.activation(layer, option.activation)
            module.register_forward_pre_hook(_InputQuantizer(quantize))
    return clone


def weight_deviation(quantizer: Quantizer, layer: Layer, weight_format: Format) -> Tensor:
    """Compute how far quantization moves a layer's weight, Q(W) - W.

    Args:
        quantizer: Holds the model.
        layer: The layer.
        weight_format: Format of the weight.

    Returns:
        The deviation, in the weight's shape.
    """
    original = layer_module(quantizer.model, layer.name).weight
    assert isinstance(original, Tensor)
    return quantizer.weight(layer.name, weight_format) - original.detach()
