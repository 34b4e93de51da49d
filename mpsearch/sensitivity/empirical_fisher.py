"""The empirical Fisher's trace in weights and inputs, by gradients of single inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.sensitivity.fisher_noise import Noise, is_measured, no_noise, note_noise
from mpsearch.sensitivity.gradient import refuse_flat
from mpsearch.sensitivity.norm_passes import norm_passes
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.shard_files import Arrays
from mpsearch.sensitivity.shard_payload import ShardContext
from mpsearch.sensitivity.shard_plan import batches_of, cells, forward_flops, some_batches
from mpsearch.sensitivity.sharding import Work, run_shards
from mpsearch.sensitivity.taps import Call

__all__ = ["EmpiricalFisher"]

PER_BATCH = 4.0
"""Cost of a batch in forward passes: its own, the backward pass, and the norms of the gradients."""


class EmpiricalFisher(Estimator):
    """Tr(F_W) * noise(W, b) + Tr(F_A) * noise(A, b), with Tr(F) the mean of ||g_n||² over inputs.

    g_n is the gradient of one input's own loss in the layer's weight or input, so that the trace
    does not depend on the batch size. The noise is the squared step ((max - min)/(2^b - 1))² where
    every offered format has a uniform step; as soon as one has not, it is the measured mean of
    (Q(x) - x)² for all of them, so that no format is favoured by the unit of its noise.

    Source: FIT (Zandonati et al. 2022, arXiv 2210.08502).
    """

    name: ClassVar[str] = "empirical_fisher"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores without randomness; `statistics` holds `fisher_trace` and, where activations are
            quantized, `activation_fisher_trace`.

        Raises:
            ModelError: The loss is NaN or infinite.
        """
        refuse_flat(self.name, task.loss)
        found = _added_up(run_shards(task, _work(task)))
        names = [layer.name for layer in task.layers]
        weights = dict(zip(names, found["weights"].tolist(), strict=True))
        activations = dict(zip(names, found["activations"].tolist(), strict=True))
        float_loss = math.fsum(found["losses"].tolist())
        if not math.isfinite(float_loss):
            raise ModelError(f"the model's {task.loss.name} is {float_loss} on this data")
        noise = Noise(task, found)
        score = np.zeros((len(task.layers), len(task.options)))
        for row, layer in enumerate(task.layers):
            for column, option in enumerate(task.options):
                if not option.weight.is_float:
                    score[row, column] += weights[layer.name] * noise.weight(layer, option.weight)
                if not option.activation.is_float:
                    moved = noise.activation(row, option.activation)
                    score[row, column] += activations[layer.name] * moved
        statistics = {"fisher_trace": weights}
        if task.activation_formats:
            statistics["activation_fisher_trace"] = activations
        return Scores(
            score,
            np.zeros_like(score),
            statistics=statistics,
            warnings=_dead(weights),
            float_loss=float_loss,
        )


@dataclass(frozen=True)
class _Batches:
    """A shard.

    Attributes:
        batches: Numbers of the batches.
    """

    batches: range


def _work(task: ScoringTask) -> Work:
    grid = cells(batches_of(task), 1, PER_BATCH * forward_flops(task))
    settings = {
        "layers": [layer.name for layer in task.layers],
        "formats": [repr(fmt) for fmt in task.activation_formats],
        "measured": is_measured(task),
    }
    shards = [_Batches(cell.batches) for cell in grid]
    steps = [cell.steps for cell in grid]
    return Work(_gradients, shards, steps, "gradients of single inputs", settings)


def _gradients(context: ShardContext, shard: _Batches, step: Callable[[int], None]) -> Arrays:
    """Add up squared gradient norms and noise over every batch: arrays `[batches, layers, …]`."""
    task, parts = context.task, []
    rows = {layer.name: row for row, layer in enumerate(task.layers)}
    watch = _Watch(task, rows)
    data = some_batches(task, shard.batches)
    with norm_passes(task, watch.on_input if task.activation_formats else None) as passes:
        for inputs, target in data:
            watch.restart()
            loss = len(inputs) * task.loss(passes.forward(inputs), target)
            weights = np.zeros(len(rows))
            for name, norms in passes.backward(loss, None, keep=False):
                weights[rows[name]] += float(norms.sum()) / len(task.data)
            mean = np.array(float(loss.detach()) / len(task.data))
            parts.append({"weights": weights, "losses": mean} | watch.found)
            if len(parts) < len(shard.batches):
                step(len(parts))
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


class _Watch:
    """Looks at the inputs of layers and at their gradients in one batch."""

    def __init__(self, task: ScoringTask, rows: dict[str, int]) -> None:
        self.found: dict[str, NDArray[np.float64]] = {}
        self._task, self._rows = task, rows

    def restart(self) -> None:
        """Begin a batch."""
        layers, formats = len(self._rows), len(self._task.activation_formats)
        self.found = {"activations": np.zeros(layers)} | no_noise(layers, formats)

    def on_input(self, call: Call, gradient: Tensor) -> None:
        """Take one call of a layer."""
        row = self._rows[call.layer]
        # One input's gradient is its row of the batch's: no other input's loss depends on it.
        squared = gradient.square().sum(dtype=torch.float64)
        self.found["activations"][row] += float(squared) / len(self._task.data)
        note_noise(self.found, self._task, row, call)
        call.release()


def _added_up(parts: list[Arrays]) -> dict[str, NDArray[np.float64]]:
    """Add up over batches; ranges are widened."""
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    total: dict[str, NDArray[np.float64]] = {}
    for name, batches in found.items():
        if name == "low":
            total[name] = batches.min(axis=0)
        elif name == "high":
            total[name] = batches.max(axis=0)
        elif name == "losses":
            total[name] = batches
        else:
            total[name] = np.zeros_like(batches[0])
            for batch in batches:
                total[name] += batch
    return total


def _dead(traces: dict[str, float]) -> tuple[str, ...]:
    dead = [name for name, trace in traces.items() if trace == 0]
    return (
        (f"gradient is zero everywhere in {', '.join(dead)}: their scores say nothing",)
        if dead
        else ()
    )
