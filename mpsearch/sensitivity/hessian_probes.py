"""Probes of the Hessian's diagonal blocks, in shards of some probes on some batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.formats import Format
from mpsearch.models.dataset import Batch
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.sensitivity.differentiation import differentiated, layer_weights
from mpsearch.sensitivity.hessian_products import (
    GradientGraph,
    pyhessian_products,
    rademacher,
    twice_differentiable,
)
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shard_files import Arrays
from mpsearch.sensitivity.shard_payload import ShardContext
from mpsearch.sensitivity.shard_plan import batches_of, cells, forward_flops, some_batches
from mpsearch.sensitivity.sharding import ShardRunner, Work
from mpsearch.sensitivity.taps import frozen, own_use, watch_inputs

__all__ = ["ProbeRound", "pyhessian_round", "taped_round"]

PER_PROBE = 6.0
"""Cost of a Hessian-vector product in forward passes."""

FEWEST = 4
"""Probes that are worth a shard of their own: the graph of a batch costs about half a probe."""


@dataclass(frozen=True)
class ProbeRound:
    """Samples of z_i . (Hz)_i over the whole data.

    Attributes:
        weights: For every layer's weight, probes x layers.
        activations: For every layer's input, of one input's own loss averaged over the data;
            probes x layers, zeros where activations stay in float.
        input_sizes: Elements of every layer's input, per input of the model.
        input_errors: (layer, format) -> mean over the data of ||Q(A) - A||².
        float_loss: Loss of the unquantized model.
    """

    weights: NDArray[np.float64]
    activations: NDArray[np.float64]
    input_sizes: NDArray[np.float64]
    input_errors: dict[tuple[str, Format], float]
    float_loss: float


@dataclass(frozen=True)
class _Probes:
    """A shard: probes of the Hessian on some batches.

    Attributes:
        batches: Numbers of the batches.
        probes: Numbers of the probes; each is the same vector in every run with the same seed.
        inputs: Whether layer inputs are probed, too.
        errors: Whether to measure what formats do to the inputs; once for every batch is enough.
    """

    batches: range
    probes: range
    inputs: bool
    errors: bool


def taped_round(
    runner: ShardRunner, task: ScoringTask, numbers: range, inputs: bool, most: int
) -> ProbeRound:
    """Probe with one graph per batch that serves all probes and layers.

    Args:
        runner: Where shards run.
        task: Model, layers, options, data; the runner's.
        numbers: Numbers of the probes; each is the same vector in every run with the same seed.
        inputs: Whether layer inputs are probed, too.
        most: How many probes there will be in all rounds, at most.

    Returns:
        The samples; errors of inputs only in the round that begins with probe 0.
    """
    batches = batches_of(task)
    grid = cells(batches, len(numbers), PER_PROBE * forward_flops(task), finest=FEWEST)
    shards = [
        _Probes(
            cell.batches,
            numbers[cell.columns.start : cell.columns.stop],
            inputs,
            errors=inputs and numbers[cell.columns.start] == 0,
        )
        for cell in grid
    ]
    names = [layer.name for layer in task.layers]
    work = Work(
        _probe_shard,
        shards,
        [cell.steps for cell in grid],
        "Hessian-vector products",
        settings={
            "seed": task.seed,
            "layers": names,
            "formats": [repr(fmt) for fmt in task.activation_formats],
        },
        before=numbers.start * batches,
        total=most * batches,
    )
    on_weights = np.zeros((len(numbers), len(names)))
    on_inputs = np.zeros_like(on_weights)
    sizes, losses = np.zeros(len(names)), []
    squares = np.zeros((len(names), len(task.activation_formats)))
    for cell, found in zip(grid, runner.run(work), strict=True):
        rows = slice(cell.columns.start, cell.columns.stop)
        for position in range(len(cell.batches)):
            on_weights[rows] += found["weights"][position]
            on_inputs[rows] += found["inputs"][position]
            if cell.columns.start == 0:
                losses.append(float(found["losses"][position]))
                sizes += found["sizes"][position]
                squares += found["squares"][position]
    errors = {
        (name, fmt): squares[row, column] / len(task.data)
        for row, name in enumerate(names)
        for column, fmt in enumerate(task.activation_formats)
    }
    return ProbeRound(on_weights, on_inputs, sizes, errors, math.fsum(losses))


def _probe_shard(context: ShardContext, shard: _Probes, step: Callable[[int], None]) -> Arrays:
    """Probe: samples `[batches, probes, layers]`, and figures of every batch."""
    task = context.task
    parts: list[Arrays] = []
    weights = layer_weights(task.model, task.layers)
    total = len(shard.batches) * len(shard.probes)

    def told(number: int) -> None:
        done = len(parts) * len(shard.probes) + number
        if done < total:
            step(done)

    with (
        frozen(task.model),
        differentiated(weights),
        evaluation_mode(task.model),
        twice_differentiable(),
    ):
        data = some_batches(task, shard.batches)
        for batch, values in zip(shard.batches, data, strict=True):
            parts.append(_probe_batch(context, shard, batch, values, weights, told))
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def _probe_batch(
    context: ShardContext,
    shard: _Probes,
    batch: int,
    values: Batch,
    weights: list[Tensor],
    told: Callable[[int], None],
) -> Arrays:
    task = context.task
    key = f"graph of batch {batch}{' with inputs' if shard.inputs else ''}"
    graph: _Graph | None = context.kept.get(key)
    if graph is None or (shard.errors and not graph.errors):
        graph = None
        context.kept.clear()  # before the next graph is built: one at a time
        graph = context.kept[key] = _Graph(task, values, weights, shard)
    on_weights = np.zeros((len(shard.probes), len(weights)))
    on_inputs = np.zeros_like(on_weights)
    for row, number in enumerate(shard.probes):
        probe = [
            *rademacher(weights, (task.seed, number)),
            *rademacher((t for _, t in graph.seen), (task.seed, number, batch + 1)),
        ]
        dots = [
            float(torch.sum(z * hz, dtype=torch.float64))
            for z, hz in zip(probe, graph.gradient.product(probe), strict=True)
        ]
        on_weights[row] = graph.share * np.array(dots[: len(weights)])
        # The batch's Hessian is block diagonal, each input's own divided by their number.
        for (column, _), dot in zip(graph.seen, dots[len(weights) :], strict=True):
            on_inputs[row, column] += graph.share * dot
        told(row + 1)
    return {"weights": on_weights, "inputs": on_inputs} | graph.figures


class _Graph:
    """A batch's gradient with its graph, and what was seen while that was built."""

    def __init__(
        self, task: ScoringTask, values: Batch, weights: list[Tensor], shard: _Probes
    ) -> None:
        inputs, target = values
        watch = _Inputs(task, task.activation_formats if shard.errors else [])
        with ExitStack() as hooks:
            if shard.inputs:
                hooks.enter_context(watch_inputs(task, watch.watch, differentiated=True))
            loss = task.loss(forward(task.model, inputs), target)
        self.errors = shard.errors
        self.share = len(inputs) / len(task.data)
        self.seen = watch.seen
        self.gradient = GradientGraph(loss, [*weights, *(tensor for _, tensor in watch.seen)])
        self.figures = {
            "losses": np.array(self.share * float(loss.detach())),
            "sizes": watch.sizes,
            "squares": watch.squares,
        }


class _Inputs:
    """Makes layer inputs variables of the graph, and measures what formats do to them."""

    def __init__(self, task: ScoringTask, formats: list[Format]) -> None:
        self.seen: list[tuple[int, Tensor]] = []
        self.sizes = np.zeros(len(task.layers))
        self.squares = np.zeros((len(task.layers), len(task.activation_formats)))
        self._task = task
        self._formats = formats

    def watch(self, row: int, inputs: Tensor, axis: int) -> Tensor:
        watched = own_use(inputs)
        self.seen.append((row, watched))
        # An expert may see more or fewer rows than the batch has inputs.
        self.sizes[row] += watched.numel() / len(self._task.data)
        name, values = self._task.layers[row].name, watched.detach()
        for column, fmt in enumerate(self._formats):
            moved = self._task.quantizer.activation(name, fmt)(values, axis) - values
            self.squares[row, column] += float(moved.double().square().sum())
        return watched


def pyhessian_round(task: ScoringTask, numbers: range, inputs: bool) -> ProbeRound:
    """Probe by PyHessian 0.1, one pass over the data for every product.

    Args:
        task: Model, layers, options, data with targets.
        numbers: Numbers of the probes.
        inputs: Whether layer inputs are probed, too.

    Returns:
        The samples, equal to those of `taped_round` up to rounding; no activations.

    Raises:
        InputError: Inputs are to be probed, which PyHessian cannot look at.
    """
    if inputs:
        raise InputError(
            "engine='pyhessian' multiplies by the Hessian in weights only; offer options without "
            "activation formats and leave out activations=True, or use the default engine"
        )
    weights = layer_weights(task.model, task.layers)
    losses = [
        (len(x) / len(task.data)) * float(task.loss(forward(task.model, x), y).detach())
        for x, y in task.data.batches()
    ]
    samples = np.zeros((len(numbers), len(weights)))
    with pyhessian_products(task, weights) as multiply:
        for row, number in enumerate(numbers):
            probe = list(rademacher(weights, (task.seed, number)))
            samples[row] = [
                float(torch.sum(z * hz, dtype=torch.float64))
                for z, hz in zip(probe, multiply(probe), strict=True)
            ]
            task.on_progress(
                Progress("profile", row + 1, len(numbers), "Hessian-vector products (PyHessian)")
            )
    nothing = np.zeros(len(weights))
    return ProbeRound(samples, np.zeros_like(samples), nothing, {}, math.fsum(losses))
