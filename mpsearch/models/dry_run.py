"""One forward pass that records which layers run, in what order, on what shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpsearch.models.inputs import unnest, watch_products
from mpsearch.models.kinds import Use, WeightSite, WeightSites
from mpsearch.models.layer import Layer

__all__ = ["DryRun"]


class DryRun:
    """Context in which a model's forward pass is recorded; hooks are gone when it is left."""

    def __init__(self, model: nn.Module, sites: WeightSites) -> None:
        """Prepare.

        Args:
            model: The model.
            sites: Its weights.
        """
        self._model = model
        self._sites = sites
        self._seen: dict[str, Layer] = {}
        self._axes: dict[str, bool] = {}
        self._started: dict[str, None] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        """Put the hooks on."""
        for site in self._sites.by_name.values():
            for use in site.uses:
                if use.takes == "operand":
                    record = self._product_recorder(site)
                    self._hooks.callback(watch_products(self._model, site, use, record))
                unnest(self._model, use.module, self._hooks)
                module = self._model.get_submodule(use.module)
                starting = module.register_forward_pre_hook(self._starter(site.name))
                self._hooks.callback(starting.remove)
                handle = module.register_forward_hook(self._recorder(site, use), with_kwargs=True)
                self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def layers(self) -> Iterator[Layer]:
        """Go through what ran.

        Yields:
            The layers, in order of their first execution.
        """
        for name in self._started:
            if name not in self._seen:
                continue
            layer = self._seen[name]
            site = self._sites.by_name[name]
            takes_input = any(
                use.takes != "nothing" and (use.takes != "operand" or name in self._axes)
                for use in site.uses
            )
            yield replace(layer, tied=site.tied, quantizes_input=takes_input)

    def notes(self) -> Iterator[str]:
        """Say what the user should know of layers that did not run or are special.

        Yields:
            Sentences.
        """
        for name, site in self._sites.by_name.items():
            if name not in self._seen:
                yield f"layer {name} did not run on the given data and is left in float"
                continue
            if site.tied:
                yield f"layer {name} shares its weight with {', '.join(site.tied)}: one layer"
            if site.kind == "expert_bank" and name not in self._axes:
                yield (
                    f"the products with bank {name} could not be followed: its inputs stay in "
                    "float and its operations are counted as one expert for every row of input"
                )
            if self._axes.get(name) is False:
                yield (
                    f"bank {name} is contracted along the axis that was taken for its output "
                    "channels; declare it with mpsearch.models.kinds.register_bank"
                )
        fused = [
            name
            for name in self._seen
            if any(u.takes == "nothing" for u in self._sites.by_name[name].uses)
            and self._sites.by_name[name].kind != "embedding"
        ]
        if fused:
            yield f"the inputs of {', '.join(fused)} stay inside one kernel and stay in float"

    def _add(self, layer: Layer) -> None:
        earlier = self._seen.get(layer.name)
        if earlier is not None:
            layer = replace(earlier, macs=earlier.macs + layer.macs)
        self._seen[layer.name] = layer

    def _starter(self, name: str) -> Callable[..., None]:
        # Calls end in another order than they start where a layer's product is inside another's.
        def start(*_: object) -> None:
            self._started.setdefault(name)

        return start

    def _recorder(self, site: WeightSite, use: Use) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            entered = _first_tensor((*args, *kwargs.values()))
            left = _first_tensor((output,))
            if entered is None or left is None:
                return
            macs = _multiplications(module, site, use, entered, left, (args, kwargs))
            if use.takes == "operand" and site.name in self._axes:
                macs = 0  # counted product by product
            shapes = tuple(entered.shape), tuple(left.shape)
            stride = module.stride if site.kind.startswith("conv") else ()
            self._add(
                Layer(
                    *(site.name, site.kind, site.layout.shape, macs, *shapes),
                    stride=tuple(stride) if isinstance(stride, tuple) else (),
                )
            )

        return record

    def _product_recorder(self, site: WeightSite) -> Callable[[Tensor, Tensor, int, int], Tensor]:
        values_per_channel = math.prod(site.layout.shape[1:])

        def record(values: Tensor, weight: Tensor, axis: int, weight_axis: int) -> Tensor:
            columns = weight.shape[-1 if weight_axis == -2 else -2]
            shapes = tuple(values.shape), (*values.shape[:-1], columns)
            macs = values.numel() * columns
            self._add(Layer(site.name, site.kind, site.layout.shape, macs, *shapes))
            # The stored axis that is contracted is told by its stride, whatever view it is seen in.
            stored = site.layout.order[-1]
            stride = math.prod(site.layout.stored[stored + 1 :])
            agrees = weight.stride(weight_axis) == stride
            self._axes[site.name] = self._axes.get(site.name, True) and (
                agrees or weight.shape[weight_axis] != values.shape[axis] or values_per_channel == 1
            )
            return values

        return record


def _first_tensor(values: tuple[object, ...]) -> Tensor | None:
    for value in values:
        if isinstance(value, PackedSequence):
            return value.data
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (tuple, list)):
            found = _first_tensor(tuple(value))
        elif isinstance(value, dict):
            found = _first_tensor(tuple(value.values()))
        else:
            found = None
        if found is not None:
            return found
    return None


def _multiplications(
    module: nn.Module,
    site: WeightSite,
    use: Use,
    entered: Tensor,
    left: Tensor,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> int:
    """Count multiply-accumulates of one call.

    Returns:
        The count; an output value of a convolution or linear layer costs one row of weights, an
        input value of a transposed convolution one slice, a row of input of a recurrence, of
        attention and of an expert one matrix.
    """
    weights = math.prod(site.layout.shape)
    if site.kind == "embedding" and use.takes == "nothing":
        return 0
    if site.kind.startswith("convtranspose"):
        return entered.numel() * (weights // site.layout.stored[0])
    if site.kind == "attention":
        return _projections(module, site, use, arguments)
    if site.kind == "expert_bank":
        return entered.numel() // entered.shape[-1] * (weights // site.layout.stored[0])
    if use.takes == "operand":
        return left.numel() * site.layout.shape[-1]
    if site.kind.startswith(("lstm", "gru", "rnn")):
        return entered.numel() // entered.shape[-1] * weights
    return left.numel() * (weights // site.layout.shape[0])


def _projections(
    module: nn.Module,
    site: WeightSite,
    use: Use,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> int:
    args, kwargs = arguments
    given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    names = ["query", "key", "value"] if use.takes == "query_key_value" else [use.takes]
    assert isinstance(module, nn.MultiheadAttention)
    rows = [given[name].numel() // given[name].shape[-1] for name in names]
    return int(sum(rows)) * (math.prod(site.layout.shape) // len(names))
