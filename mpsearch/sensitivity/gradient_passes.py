"""Gradients of the loss against the errors that options make, in shards of passes and batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.formats import Format, parse_option
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.quantize import weight_deviation
from mpsearch.sensitivity.differentiation import differentiated, layer_weights
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shard_files import Arrays
from mpsearch.sensitivity.shard_payload import ShardContext
from mpsearch.sensitivity.shard_plan import MOST, batches_of, cells, forward_flops, some_batches
from mpsearch.sensitivity.sharding import Work, run_shards
from mpsearch.sensitivity.taps import frozen, own_use, watch_inputs

__all__ = ["GradientPass", "Gradients", "gradients_of"]

FLOAT = parse_option("float")

PER_PASS = 3.0
"""Cost of a forward and backward pass in forward passes."""

MOST_GRADIENTS = 8
"""Most shards whose gradients are kept whole, each as large as the model."""


@dataclass(frozen=True)
class GradientPass:
    """A pass over the data that serves some options.

    Attributes:
        point: Number of the option that all layers are at; None: all in float.
        columns: Numbers of the options that it scores.
    """

    point: int | None
    columns: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    """A shard: some passes over some batches.

    Attributes:
        batches: Numbers of the batches.
        passes: The passes.
        elementwise: Whether the gradient itself is wanted, and not only its inner products.
    """

    batches: range
    passes: tuple[GradientPass, ...]
    elementwise: bool


@dataclass
class Gradients:
    """What one pass found, added up over shards.

    Attributes:
        columns: The options it scores.
        weights: Inner products of weight gradients with deviations, layers x columns.
        inputs: Those of input gradients.
        gradient: Gradients of all weights one after another, where they are wanted themselves.
        alive: Which layers have a gradient other than zero.
        loss: The mean loss.
    """

    columns: list[int]
    weights: NDArray[np.float64]
    inputs: NDArray[np.float64]
    gradient: NDArray[Any] | None
    alive: NDArray[np.bool_]
    loss: float

    def scores(self, task: ScoringTask) -> NDArray[np.float64]:
        """Add up the magnitudes of the terms of weights and inputs."""
        found = np.abs(self.weights)
        if self.gradient is not None:
            found = np.zeros_like(self.weights)
            for row, (weight, start, stop) in enumerate(_places(task)):
                flat = torch.from_numpy(self.gradient[start:stop])
                gradient = flat.to(weight.device).view(weight.shape)
                for position, column in enumerate(self.columns):
                    product = _product(task, row, column, gradient)
                    if product is not None:
                        found[row, position] = float(product.abs().sum(dtype=torch.float64))
        return found + np.abs(self.inputs)


def gradients_of(
    task: ScoringTask, passes: Sequence[GradientPass], elementwise: bool
) -> Iterator[Gradients]:
    """Differentiate the mean loss over the data, pass by pass."""
    grid = cells(
        batches_of(task),
        len(passes),
        PER_PASS * forward_flops(task),
        most=MOST_GRADIENTS if elementwise else MOST,
    )
    shards = [
        _Part(cell.batches, tuple(passes[number] for number in cell.columns), elementwise)
        for cell in grid
    ]
    settings = {
        "layers": [layer.name for layer in task.layers],
        "options": [repr(option) for option in task.options],
    }
    steps = [cell.steps for cell in grid]
    parts = run_shards(task, Work(_differentiate, shards, steps, "gradients", settings))
    for number, one in enumerate(passes):
        mine = [
            {name: array[number - cell.columns.start] for name, array in part.items()}
            for cell, part in zip(grid, parts, strict=True)
            if number in cell.columns
        ]
        yield Gradients(
            list(one.columns),
            _sum([part["weights"] for part in mine]),
            _sum([part["inputs"] for part in mine]),
            _sum([part["gradient"] for part in mine]) if elementwise else None,
            np.logical_or.reduce([part["alive"] for part in mine]),
            math.fsum(loss for part in mine for loss in part["losses"].tolist()),
        )


def _sum(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    # Only sums are made in float64: a single shard's gradient is as it is.
    total = parts[0] if len(parts) == 1 else parts[0].astype(np.float64)
    for part in parts[1:]:
        total += part
    return total


def _differentiate(context: ShardContext, part: _Part, step: Callable[[int], None]) -> Arrays:
    """Differentiate on some batches: arrays `[passes, …]`."""
    found = []
    for number, one in enumerate(part.passes):

        def told(batches: int, before: int = number * len(part.batches)) -> None:
            if before + batches < len(part.passes) * len(part.batches):
                step(before + batches)

        found.append(_one_pass(context.task, part, one, told))
    return {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}


def _one_pass(
    task: ScoringTask, part: _Part, one: GradientPass, told: Callable[[int], None]
) -> dict[str, NDArray[Any]]:
    products: dict[tuple[str, Format], float] = {}
    leaves: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    losses: list[float] = []
    weights = layer_weights(task.model, task.layers)
    formats, on_weights = task.activation_formats, {}
    if one.point is not None:
        option = task.options[one.point]
        formats = [] if option.activation.is_float else [option.activation]
        alone = replace(option, activation=FLOAT.activation)
        on_weights = {layer.name: alone for layer in task.layers}
    with (
        ExitStack() as hooks,
        frozen(task.model),
        task.quantizer.options(on_weights),
        differentiated(weights),
        evaluation_mode(task.model),
    ):
        if formats:
            rounded = one.point is not None
            watch = _input_watcher(task, formats, products, leaves, part.elementwise, rounded)
            hooks.enter_context(watch_inputs(task, watch, differentiated=True))
        data = some_batches(task, part.batches)
        for done, (inputs, target) in enumerate(data, 1):
            share = len(inputs) / len(task.data)
            loss = share * task.loss(forward(task.model, inputs), target)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ModelError(f"the model's {task.loss.name} is {losses[-1]} on this data")
            found = torch.autograd.grad(loss, [*weights, *leaves], allow_unused=True)
            leaves.clear()
            for layer, gradient in zip(task.layers, found, strict=False):
                _add(gradients, layer.name, gradient)
            told(done)
    return _arrays(task, part, one, gradients, products) | {"losses": np.array(losses)}


def _arrays(
    task: ScoringTask,
    part: _Part,
    one: GradientPass,
    gradients: Mapping[str, Tensor],
    products: Mapping[tuple[str, Format], float],
) -> dict[str, NDArray[Any]]:
    on_weights = np.zeros((len(task.layers), len(one.columns)))
    on_inputs = np.zeros_like(on_weights)
    for row, layer in enumerate(task.layers):
        for position, column in enumerate(one.columns):
            activation = task.options[column].activation
            on_inputs[row, position] = products.get((layer.name, activation), 0.0)
            if layer.name in gradients and not part.elementwise:
                product = _product(task, row, column, gradients[layer.name])
                if product is not None:
                    on_weights[row, position] = float(product.sum(dtype=torch.float64))
    alive = np.array([_any_nonzero(gradients.get(layer.name)) for layer in task.layers])
    found = {"weights": on_weights, "inputs": on_inputs, "alive": alive}
    if part.elementwise:
        found["gradient"] = _flattened(task, gradients)
    return found


def _flattened(task: ScoringTask, gradients: Mapping[str, Tensor]) -> NDArray[Any]:
    """Lay the gradients of all weights one after another; zeros where there is none."""
    flat = []
    for layer, (weight, _, _) in zip(task.layers, _places(task), strict=True):
        gradient = gradients.get(layer.name, torch.zeros_like(weight)).detach().flatten().cpu()
        # numpy has no types of fewer bits that torch has, too.
        flat.append(gradient if gradient.dtype == torch.float64 else gradient.float())
    found: NDArray[Any] = torch.cat(flat).numpy()
    return found


def _places(task: ScoringTask) -> Iterator[tuple[Tensor, int, int]]:
    """Give every layer's weight with its place in the flattened gradient."""
    start = 0
    for weight in layer_weights(task.model, task.layers):
        yield weight.detach(), start, start + weight.numel()
        start += weight.numel()


def _product(task: ScoringTask, row: int, column: int, gradient: Tensor) -> Tensor | None:
    """Multiply a weight's gradient with its deviation at an option; None where it has none."""
    option = task.options[column]
    if option.weight.is_float:
        return None
    return gradient * weight_deviation(task.quantizer, task.layers[row], option.weight)


def _add(gradients: dict[str, Tensor], layer: str, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    earlier = gradients.get(layer)
    # Only sums are made in float64: a single batch's gradient is as it is.
    gradients[layer] = gradient if earlier is None else earlier.double().add_(gradient)


def _input_watcher(
    task: ScoringTask,
    formats: Sequence[Format],
    products: dict[tuple[str, Format], float],
    leaves: list[Tensor],
    elementwise: bool,
    rounded: bool,
) -> Callable[[int, Tensor, int], Tensor | None]:
    def watch(row: int, inputs: Tensor, axis: int) -> Tensor:
        layer = task.layers[row].name
        values = inputs.detach()
        if rounded:
            # Straight through: the value is the rounded one, the slope that of the identity.
            moved = task.quantizer.activation(layer, formats[0])(values, axis) - values
            inputs = inputs + moved
        watched = own_use(inputs)
        if watched.is_leaf:
            leaves.append(watched)

        def on_gradient(gradient: Tensor) -> None:
            for fmt in formats:
                moved = values - task.quantizer.activation(layer, fmt)(values, axis)
                product = gradient * moved
                if elementwise:
                    product = product.abs()
                earlier = products.get((layer, fmt), 0.0)
                products[layer, fmt] = earlier + float(product.sum(dtype=torch.float64))

        watched.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return watched

    return watch


def _any_nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.any(gradient != 0))
