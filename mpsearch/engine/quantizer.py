"""The quantizer: options on a model's layers, put on and taken off without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from mpsearch.engine.activations import (
    MINMAX,
    ActivationQuantizer,
    KnownRange,
    RangeRule,
    settled,
)
from mpsearch.engine.compiled import as_written
from mpsearch.engine.marking import refuse_quantized
from mpsearch.engine.weight_cache import DEFAULT_MEMORY_LIMIT, WeightCache
from mpsearch.errors import InputError, MismatchError, ModelError
from mpsearch.formats import Format, Option
from mpsearch.formats.calibration import Statistics
from mpsearch.models.inputs import intercept
from mpsearch.models.kinds import Use, WeightSite, weight_sites

__all__ = [
    "Quantizer",
    "Ranges",
    "layer_module",
    "layer_weight",
]

Ranges = Mapping[str, tuple[float, float] | KnownRange | Statistics]
"""Layer -> the range of its input, or everything that was observed of it."""


_FLOAT: MutableMapping[nn.Parameter, Tensor] = WeakIdKeyDictionary()
"""Values of parameters while options are on them, so that the contexts of several quantizers can
be nested."""


def layer_module(model: nn.Module, name: str) -> nn.Module:
    """Find the module that a layer's weight belongs to.

    Args:
        model: The model.
        name: Name of the layer.

    Returns:
        The module: the one of that name, or for a layer named after its parameter
        (`attention.in_proj_weight`) the one that has the parameter.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = model
    if name and module is not model and isinstance(module._parameters.get("weight"), Tensor):
        return module  # the common case, without a walk over all modules
    site = weight_sites(model).find(model, name)
    return model.get_submodule(site.parameters[0].rpartition(".")[0])


def layer_weight(model: nn.Module, name: str) -> nn.Parameter:
    """Find a layer's weight, as it is stored.

    Args:
        model: The model.
        name: Name of the layer.

    Returns:
        The model's own parameter.
    """
    module = layer_module(model, name)
    own = name.rpartition(".")[2]
    return module.get_parameter(own if own in module._parameters else "weight")


class Quantizer:
    """Puts options on a model's layers and takes them off; each weight is quantized once.

    The model's own parameters are exchanged for quantized ones while options are on, and put back
    after, so nothing is copied but the quantized weights, which are kept for the next time as far
    as memory allows.
    """

    def __init__(
        self,
        model: nn.Module,
        ranges: Ranges,
        *,
        rule: RangeRule = MINMAX,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
    ) -> None:
        """Start with every layer in float.

        Args:
            model: The float model; changed only inside `options`.
            ranges: Calibrated input range of each layer, or its observed statistics; needed by
                options that quantize activations.
            rule: How a range is chosen from statistics, for every format apart.
            memory_limit: Most bytes of quantized weights to keep.
        """
        refuse_quantized(model, nested=True)
        self.model = model
        self.sites = weight_sites(model)
        self._ranges = ranges
        self._rule = rule
        self._weights = WeightCache(memory_limit)
        self._activations: dict[tuple[str, Format], ActivationQuantizer] = {}
        # What parameters held before options were put on, so that contexts can be nested.
        self._originals: dict[str, Tensor] = {}
        self._contexts = 0

    @property
    def active(self) -> bool:
        """Whether some options are on."""
        return self._contexts > 0

    def original(self, layer: str) -> Tensor:
        """Give a layer's weight in float, also while options are on.

        Args:
            layer: Name of the layer.

        Returns:
            The weight in its stored shape; not to be changed.
        """
        return self._original(self.sites.find(self.model, layer))

    def weight(self, layer: str, weight_format: Format) -> Tensor:
        """Quantize a layer's weight, or give what was computed before.

        Args:
            layer: Name of the layer.
            weight_format: Format of the weight; scales are per output channel of the layer, which
                for a bank of experts means of every expert.

        Returns:
            The fake-quantized weight, of the original's shape and type.

        Raises:
            ModelError: The weight holds NaN or infinite values.
        """
        site = self.sites.find(self.model, layer)
        key = (site.name, weight_format, *_state(self._original(site)))
        known = self._weights.get(key)
        if known is None:
            known = self.round_weight(layer, weight_format)
            self._weights.put(key, known)
        return known

    def round_weight(self, layer: str, weight_format: Format) -> Tensor:
        """Quantize a layer's weight anew; as `weight`, which keeps it, does.

        Args:
            layer: Name of the layer.
            weight_format: Format of the weight.

        Returns:
            The fake-quantized weight, the caller's to change.

        Raises:
            ModelError: The weight holds NaN or infinite values.
        """
        site = self.sites.find(self.model, layer)
        original = self._original(site)
        # gradients may be wanted of it one day, which inference tensors do not take
        with torch.inference_mode(False), torch.no_grad(), _named(site):
            rows = weight_format.fake_quantize(site.layout.rows(original), channel_axis=0)
            restored = site.layout.restore(rows)
            own = restored.data_ptr() != original.data_ptr()  # a format may give back its input
            if own and restored.stride() == original.stride():
                return restored
            # in memory as the float weight lies (channels last, say): the same kernels run
            return torch.empty_like(original).copy_(restored)

    def activation(self, layer: str, activation_format: Format) -> Callable[..., Tensor]:
        """Make the function that quantizes a layer's input with its calibrated range.

        Args:
            layer: Name of the layer.
            activation_format: Format of the input.

        Returns:
            Tensor, and optionally the axis that the weight contracts, to a tensor of the same
            shape and type. The identity for layers without an input that can be quantized.
        """
        site = self.sites.find(self.model, layer)
        reachable = [use for use in site.uses if use.takes != "nothing"]
        named = [use for use in reachable if use.layer == layer]
        use = next(iter(named or reachable), None)
        return _identity if use is None else self._rounding(use, activation_format)

    @contextmanager
    def options(self, choice: Mapping[str, Option]) -> Iterator[nn.Module]:
        """Run the model with options on some layers; all others stay in float.

        Contexts can be nested: of two formats for one weight the inner one holds, and always on
        the float weight; an input is rounded by both.

        Args:
            choice: Layer -> option. Layers that share a weight need not all be named, but must
                agree on its format.

        Yields:
            The model, quantized until the context is left, by an exception too.
        """
        originals = dict(self._originals)
        self._contexts += 1
        try:
            with self.put_on(choice), self._published():
                yield self.model
        finally:
            self._contexts -= 1
            self._originals = originals

    def put_on(self, choice: Mapping[str, Option]) -> ExitStack:
        """Put options on until the stack that is returned is closed.

        The stack refers to the parameters that it puts back, not to the model or the quantizer.
        For temporary changes use `options`, after which the quantizer can be used again.

        Args:
            choice: As in `options`.

        Returns:
            What takes them off; open until it is closed.
        """
        hooked = False
        with ExitStack() as undo:
            # torch.autocast keeps casts of parameters, and takes one that was given other values
            # for the one that it knows
            undo.callback(torch.clear_autocast_cache)
            for site, option, uses in self._resolved(choice):
                if not option.weight.is_float:
                    self._exchange(site, option.weight, undo)
                for use, activation_format in uses:
                    if not activation_format.is_float and use.takes != "nothing":
                        rounding = self._rounding(use, activation_format)
                        undo.callback(intercept(self.model, site, use, rounding))
                        hooked = True
            torch.clear_autocast_cache()
            if hooked:
                undo.enter_context(as_written(self.model))
            return undo.pop_all()

    def resolve_ranges(self, choice: Mapping[str, Option]) -> dict[str, tuple[float, float]]:
        """Settle the input range of every layer for the format it is given.

        Args:
            choice: Layer -> option.

        Returns:
            Layer -> range, for those whose input is quantized; what an allocation is saved with.
        """
        found: dict[str, tuple[float, float]] = {}
        for _, _, uses in self._resolved(choice):
            for use, activation_format in uses:
                if use.layer in self._ranges and not activation_format.is_float:
                    _, low, high = settled(activation_format, self._ranges[use.layer], self._rule)
                    found[use.layer] = (low, high)
        return found

    def _original(self, site: WeightSite) -> Tensor:
        name = site.parameters[0]
        if name in self._originals:
            return self._originals[name]
        parameter = self.model.get_parameter(name)
        return _FLOAT.get(parameter, parameter.detach())

    def _published(self) -> ExitStack:
        """Tell other quantizers of these parameters what was in them, until the stack is closed."""
        with ExitStack() as undo:
            for name, original in self._originals.items():
                parameter = self.model.get_parameter(name)
                if parameter not in _FLOAT:  # else a context around this one knows better
                    _FLOAT[parameter] = original
                    undo.callback(_FLOAT.pop, parameter, None)
            return undo.pop_all()

    def _resolved(
        self, choice: Mapping[str, Option]
    ) -> Iterator[tuple[WeightSite, Option, list[tuple[Use, Format]]]]:
        """Gather what is asked of each stored weight, by whatever names."""
        asked: dict[str, dict[str, Option]] = {}
        for layer, option in choice.items():
            asked.setdefault(self.sites.find(self.model, layer).name, {})[layer] = option
        for name, options in asked.items():
            site = self.sites.by_name[name]
            first_layer, first = next(iter(options.items()))
            for layer, option in options.items():
                if option.weight != first.weight:
                    raise MismatchError(
                        f"{first_layer} and {layer} use one stored weight, which cannot be both "
                        f"{first.weight.name} and {option.weight.name}; give them the same option"
                    )
            uses = [(use, options.get(use.layer, first).activation) for use in site.uses]
            yield site, first, uses

    def _exchange(self, site: WeightSite, weight_format: Format, undo: ExitStack) -> None:
        quantized = self.weight(site.name, weight_format)
        original = self._original(site)
        for parameter in _distinct(self.model, site):
            if site.flattened:
                before = parameter.data.clone()
                original = before if original.data_ptr() == parameter.data_ptr() else original
                parameter.data.copy_(quantized)
                undo.callback(parameter.data.copy_, before)
            else:
                before = parameter.data
                undo.callback(setattr, parameter, "data", before)
                parameter.data = quantized
        self._originals.setdefault(site.parameters[0], original)

    def _rounding(self, use: Use, activation_format: Format) -> Callable[..., Tensor]:
        if activation_format.is_float:
            return _identity
        key = (use.layer, activation_format)
        if key not in self._activations:
            if use.layer not in self._ranges:
                if use.takes == "operand" and self._ranges:
                    # Calibration ran and never met this product; the survey of layers says so.
                    return _identity
                raise InputError(
                    f"layer {use.layer} has no calibrated input range for "
                    f"{activation_format.name}; give the data to calibrate on"
                )
            self._activations[key] = ActivationQuantizer(
                *settled(activation_format, self._ranges[use.layer], self._rule)
            )
        return self._activations[key]


@contextmanager
def _named(site: WeightSite) -> Iterator[None]:
    """Say of which layer the weight is that cannot be rounded."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"layer {site.name} ({site.parameters[0]}): {error}") from error


def _identity(values: Tensor, axis: int = -1) -> Tensor:
    """Return the input itself."""
    del axis
    return values


def _state(weight: Tensor) -> tuple[int, int]:
    """What tells that a weight was moved or changed since it was quantized."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _distinct(model: nn.Module, site: WeightSite) -> list[nn.Parameter]:
    parameters = {id(p): p for p in map(model.get_parameter, site.parameters)}
    return list(parameters.values())
