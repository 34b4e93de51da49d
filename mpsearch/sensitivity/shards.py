"""Measuring many choices of options in shards: some choices on some batches each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.engine.meter import DEFAULT_PREFIX_MEMORY, AllocationMeter
from mpsearch.formats import Option
from mpsearch.losses import Loss, mean_of
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shard_files import Arrays
from mpsearch.sensitivity.shard_payload import ShardContext
from mpsearch.sensitivity.shard_plan import Cell, batches_of, cells, forward_flops, some_batches
from mpsearch.sensitivity.sharding import Work, run_shards

__all__ = ["Measured", "measure_choices", "measure_outputs"]

FEWEST = 8
"""Choices that are worth a shard of their own: what is shared is recorded in about three runs."""

SHARE_RUN = 0.5
"""Part of a forward pass that a choice takes on average, because what did not change is re-used."""

Choice = Mapping[str, Option]


@dataclass(frozen=True)
class Measured:
    """What was measured of many choices.

    Attributes:
        losses: float64 `[choices]`.
        outputs: The model's outputs for the first inputs, float32 `[choices, inputs, ...]`; no
            inputs where none were asked for.
    """

    losses: NDArray[np.float64]
    outputs: NDArray[Any]


@dataclass(frozen=True)
class _Choices:
    """A shard: choices to measure on some batches.

    Attributes:
        batches: Numbers of the batches.
        choices: (layer, option) pairs of every choice.
        inputs: How many inputs' outputs to keep, from the first of the whole data on.
    """

    batches: range
    choices: tuple[tuple[tuple[str, Option], ...], ...]
    inputs: int


def measure_choices(
    task: ScoringTask, choices: Sequence[Choice], loss: Loss, what: str
) -> NDArray[np.float64]:
    """Measure the loss of many choices of options on the task's data.

    Args:
        task: Model, quantizer and data.
        choices: Layer -> option, all other layers in float.
        loss: What to measure.
        what: What is measured, for progress reports.

    Returns:
        The losses, float64, in the order of the choices.
    """
    return measure_outputs(task, choices, loss, what, 0).losses


def measure_outputs(
    task: ScoringTask, choices: Sequence[Choice], loss: Loss, what: str, inputs: int
) -> Measured:
    """Measure the loss of many choices of options, and keep the model's outputs.

    Shards are written to the task's `cache_dir` as they are finished, and read back by the next run
    with the same model, data, loss and choices. With an `executor` they run there, each on a copy
    of the model; the numbers are those of a run without one.

    Args:
        task: Model, quantizer and data.
        choices: Layer -> option, all other layers in float.
        loss: What to measure.
        what: What is measured, for progress reports.
        inputs: How many inputs' outputs to keep, from the first on.

    Returns:
        Losses and outputs, in the order of the choices.
    """
    if not choices:
        return Measured(np.zeros(0), np.zeros((0, 0)))
    named = [tuple(sorted(choice.items(), key=lambda item: item[0])) for choice in choices]
    grid = cells(batches_of(task), len(choices), SHARE_RUN * forward_flops(task), finest=FEWEST)
    shards = [
        _Choices(cell.batches, tuple(named[c] for c in cell.columns), inputs) for cell in grid
    ]
    work = Work(_measure_shard, shards, [cell.steps for cell in grid], what)
    found = run_shards(replace(task, loss=loss), work)
    return _put_together(grid, found, loss, inputs)


def _put_together(
    grid: Sequence[Cell], found: Sequence[Arrays], loss: Loss, inputs: int
) -> Measured:
    """Take means over all batches, and lay outputs side by side."""
    parts: dict[int, list[tuple[float, int]]] = {}
    outputs: dict[int, list[NDArray[Any]]] = {}
    for cell, arrays in zip(grid, found, strict=True):
        for position, choice in enumerate(cell.columns):
            sums = arrays["sums"][position].tolist()
            parts.setdefault(choice, []).extend(zip(sums, arrays["terms"].tolist(), strict=True))
            if arrays["outputs"].shape[1]:
                outputs.setdefault(choice, []).append(arrays["outputs"][position])
    order = sorted(parts)
    losses = np.array([mean_of(parts[choice], loss) for choice in order])
    if not inputs:
        return Measured(losses, np.zeros((len(losses), 0)))
    return Measured(losses, np.stack([np.concatenate(outputs[choice]) for choice in order]))


def _measure_shard(context: ShardContext, shard: _Choices, step: Callable[[int], None]) -> Arrays:
    """Measure choices on some batches: sums of the loss `[choices, batches]`, terms `[batches]`."""
    meter, outputs = _meter(context, shard)

    def on_step(runs: int, total: int) -> None:
        if runs < total:
            step(runs)

    tallies = meter.tally_many([dict(choice) for choice in shard.choices], on_step)
    for tally in tallies:
        if any(count for _, count in tally.parts):
            mean_of(tally.parts, context.task.loss)  # refuses what is not finite, before the rest
    return {
        "sums": np.array([[value for value, _ in tally.parts] for tally in tallies]),
        "terms": np.array([count for _, count in tallies[0].parts]),
        "outputs": outputs.taken(len(shard.choices)),
    }


def _meter(context: ShardContext, shard: _Choices) -> tuple[AllocationMeter, _Outputs]:
    """Make a meter, or take that of the last shard on the same batches with its recording."""
    key = f"meter of {shard.batches} with outputs of {shard.inputs}"
    if key not in context.kept:
        context.kept.clear()
        task, batches = context.task, shard.batches
        outputs = _Outputs(task.loss, shard.inputs - batches.start * task.data.batch_size)
        data = list(some_batches(task, batches))
        limit = DEFAULT_PREFIX_MEMORY if task.memory_limit is None else task.memory_limit // 2
        meter = AllocationMeter(task.quantizer, data, outputs.loss, memory_limit=limit)
        context.kept[key] = meter, outputs
    found: tuple[AllocationMeter, _Outputs] = context.kept[key]
    return found


class _Outputs:
    """Keeps the outputs that pass through a loss, for the first inputs."""

    def __init__(self, loss: Loss, inputs: int) -> None:
        self._inputs = max(0, inputs)
        self.loss = loss if not self._inputs else replace(loss, function=self._watch)
        self._function = loss.function
        self._seen: list[Tensor] = []

    def _watch(self, output: Tensor, target: Tensor) -> Tensor:
        self._seen.append(output.float().cpu())
        return self._function(output, target)

    def taken(self, choices: int) -> NDArray[Any]:
        """Put the outputs of a shard together, which came choice by choice of one batch first."""
        if not self._inputs:
            return np.zeros((choices, 0))
        batches = [
            torch.stack(self._seen[start : start + choices])
            for start in range(0, len(self._seen), choices)
        ]
        self._seen.clear()
        found: NDArray[Any] = torch.cat(batches, dim=1)[:, : self._inputs].numpy()
        return found
