"""Observing the inputs of layers over data, once for all options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError
from mpsearch.formats.calibration import Observer, Statistics
from mpsearch.models.dataset import Batch
from mpsearch.models.inputs import intercept
from mpsearch.models.kinds import weight_sites
from mpsearch.models.running import evaluation_mode, forward

__all__ = ["calibrate", "observe"]


def calibrate(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Batch]
) -> dict[str, tuple[float, float]]:
    """Record the range of every layer's input over the data, in one pass for all options.

    Args:
        model: The float model.
        layers: Names of the layers to watch.
        batches: Calibration inputs.

    Returns:
        Layer -> (smallest, largest) input value. Layers without a floating-point input of their
        own (embeddings, recurrent weights inside a fused kernel) and layers that did not run are
        left out; a layer that shares its weight brings the others along.

    Raises:
        ModelError: An input is NaN or infinite.
    """
    ends: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Tensor], None]:
        def record(values: Tensor) -> None:
            # Kept as tensors: reading numbers would wait for the device at every layer.
            found = torch.stack(torch.aminmax(values.detach())).double()
            if name in ends:
                earlier = ends[name]
                found = torch.stack(
                    [torch.minimum(earlier[0], found[0]), torch.maximum(earlier[1], found[1])]
                )
            ends[name] = found

        return record

    _run(model, layers, batches, watch)
    ranges = {}
    for name, found in ends.items():
        if not bool(torch.isfinite(found).all()):
            raise ModelError(f"the input of layer {name} is not finite on this data")
        low, high = found.tolist()
        ranges[name] = (low, high)
    return ranges


def observe(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Batch]
) -> dict[str, Statistics]:
    """Record extremes and a histogram of every layer's input, in one pass for all options.

    Args:
        model: The float model.
        layers: Names of the layers to watch.
        batches: Calibration inputs.

    Returns:
        Layer -> statistics, from which a `Quantizer` chooses a range for every format; the same
        layers as `calibrate`.

    Raises:
        ModelError: An input is NaN or infinite.
    """
    observers: dict[str, Observer] = {}

    def watch(name: str) -> Callable[[Tensor], None]:
        def record(values: Tensor) -> None:
            try:
                observers.setdefault(name, Observer()).observe(values)
            except DataError as error:
                raise ModelError(f"the input of layer {name} is not finite: {error}") from error

        return record

    _run(model, layers, batches, watch)
    return {name: observer.statistics() for name, observer in observers.items()}


def _run(
    model: nn.Module,
    layers: Sequence[str],
    batches: Iterable[Batch],
    watch: Callable[[str], Callable[[Tensor], None]],
) -> None:
    """Run the data with a function watching each layer's input."""
    sites = weight_sites(model)
    # A weight asked for under two names is one weight, watched once.
    wanted = {site.name: site for site in (sites.find(model, name) for name in layers)}
    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        for site in wanted.values():
            for use in site.uses:
                function = _Watching(watch(use.layer))
                hooks.callback(intercept(model, site, use, function))
        for inputs, _ in batches:
            forward(model, inputs)


class _Watching:
    """Lets an input through after showing it."""

    def __init__(self, record: Callable[[Tensor], None]) -> None:
        self._record = record

    def __call__(self, values: Tensor, _: int) -> Tensor:
        if values.numel():
            self._record(values)
        return values
