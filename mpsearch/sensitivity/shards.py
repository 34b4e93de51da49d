"""Long measurements in shards: resumed after a crash, spread over workers, the same bits always."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.engine.meter import AllocationMeter
from mpsearch.errors import InputError
from mpsearch.formats import Option
from mpsearch.losses import Loss, as_loss, known_losses
from mpsearch.models.fingerprint import model_fingerprint
from mpsearch.progress import Progress
from mpsearch.quantize import Quantizer
from mpsearch.sensitivity.content import content_key, loss_identity
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shard_files import Measured, read_shard, write_shard

__all__ = ["Measured", "content_key", "measure_choices", "measure_outputs"]

SHARD = 32
"""Choices in one shard; fixed, so that neither results nor files depend on the workers."""

Choice = Mapping[str, Option]


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

    Shards of 32 choices are written to the task's `cache_dir` as they are finished, and read back
    by the next run with the same model, data, loss and choices. With an `executor` they run there,
    each on a copy of the model; the numbers are those of a run without one.

    Args:
        task: Model, quantizer and data.
        choices: Layer -> option, all other layers in float.
        loss: What to measure.
        what: What is measured, for progress reports.
        inputs: How many inputs' outputs to keep, from the first on.

    Returns:
        Losses and outputs, in the order of the choices.
    """
    shards = [choices[start : start + SHARD] for start in range(0, len(choices), SHARD)]
    files = _files(task, shards, loss, inputs)
    found = {number: read_shard(file, len(shards[number])) for number, file in files.items()}
    done = {number: values for number, values in found.items() if values is not None}

    def finish(number: int, values: Measured) -> None:
        done[number] = values
        if number in files:
            write_shard(files[number], values)

    def report(extra: int = 0) -> None:
        count = sum(len(shards[number]) for number in done) + extra
        task.on_progress(Progress("profile", count, len(choices), what))

    missing = [number for number in range(len(shards)) if number not in done]
    if done:
        report()
    if task.executor is None or not missing:
        kept = _Outputs(loss, inputs)
        meter = _meter(task, kept.loss) if missing else None
        for number in missing:
            assert meter is not None
            step = _stepping(report, len(shards[number]))
            losses = [m.loss for m in meter.measure_many(shards[number], step)]
            finish(number, kept.taken(losses))
            report()
    else:
        payload = _payload(task, loss)
        running = {
            task.executor.submit(_measure_shard, payload, list(shards[number]), inputs): number
            for number in missing
        }
        for future in as_completed(running):
            finish(running[future], future.result())
            report()
    ordered = [done[number] for number in range(len(shards))]
    return Measured(
        np.concatenate([part.losses for part in ordered]),
        np.concatenate([part.outputs for part in ordered])
        if inputs
        else np.zeros((len(choices), 0)),
    )


def _meter(task: ScoringTask, loss: Loss) -> AllocationMeter:
    if task.memory_limit is None:
        return AllocationMeter(task.quantizer, task.data.batches(), loss)
    return AllocationMeter(
        task.quantizer, task.data.batches(), loss, memory_limit=task.memory_limit // 2
    )


class _Outputs:
    """Keeps the outputs that pass through a loss, for the first inputs."""

    def __init__(self, loss: Loss, inputs: int) -> None:
        self.loss = loss if not inputs else replace(loss, function=self._watch)
        self._function = loss.function
        self._inputs = inputs
        self._seen: list[Tensor] = []

    def _watch(self, output: Tensor, target: Tensor) -> Tensor:
        self._seen.append(output.float().cpu())
        return self._function(output, target)

    def taken(self, losses: Sequence[float]) -> Measured:
        """Put the outputs of a shard together, which came choice by choice of one batch first."""
        values = np.array(losses, dtype=np.float64)
        if not self._inputs:
            return Measured(values, np.zeros((len(losses), 0)))
        batches = [
            torch.stack(self._seen[start : start + len(losses)])
            for start in range(0, len(self._seen), len(losses))
        ]
        self._seen.clear()
        return Measured(values, torch.cat(batches, dim=1)[:, : self._inputs].numpy())


def _stepping(report: Any, size: int) -> Any:  # noqa: ANN401 - a callback of two counts
    def step(runs: int, total: int) -> None:
        if runs < total:
            report(runs * size // total)

    return step


def _payload(task: ScoringTask, loss: Loss) -> bytes:
    """Pack what a worker needs; a copy, because measuring changes the model for a while."""
    named: Loss | str = loss.name if loss.name in known_losses() else loss
    try:
        return pickle.dumps(
            (task.model, dict(task.ranges), task.data, named, torch.get_num_threads())
        )
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"the model or the loss {loss.name} cannot be sent to workers: {error}; "
            "define them at the top of a module, or leave out the executor"
        ) from error


def _measure_shard(payload: bytes, choices: list[Choice], inputs: int) -> Measured:
    """Measure one shard on a copy of the model; runs in a worker."""
    model, ranges, data, loss, threads = pickle.loads(payload)  # noqa: S301 - our own bytes
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)  # sums are split by threads, which shows in the last bits
    kept = _Outputs(as_loss(loss), inputs)
    meter = AllocationMeter(Quantizer(model, ranges), data.batches(), kept.loss)
    return kept.taken([measured.loss for measured in meter.measure_many(choices)])


def _files(
    task: ScoringTask, shards: Sequence[Sequence[Choice]], loss: Loss, inputs: int
) -> dict[int, Path]:
    if task.cache_dir is None:
        return {}
    common: dict[str, Any] = {
        "model": model_fingerprint(task.model),
        "data": task.data.fingerprint,
        "loss": loss_identity(loss),
        "ranges": sorted((name, repr(found)) for name, found in task.ranges.items()),
    }
    if inputs:
        common["outputs"] = inputs
    folder = Path(task.cache_dir) / "shards"
    files = {}
    for number, shard in enumerate(shards):
        menu = [
            sorted((layer, repr(o.weight), repr(o.activation)) for layer, o in choice.items())
            for choice in shard
        ]
        files[number] = (
            folder / f"{content_key(choices=menu, **common)}.{'npz' if inputs else 'json'}"
        )
    return files
