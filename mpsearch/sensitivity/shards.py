"""Long measurements in shards: resumed after a crash, spread over workers, the same bits always."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpsearch.engine.meter import AllocationMeter
from mpsearch.errors import DocumentError, InputError
from mpsearch.formats import Option
from mpsearch.losses import Loss, as_loss, known_losses
from mpsearch.models.fingerprint import model_fingerprint
from mpsearch.progress import Progress
from mpsearch.quantize import Quantizer
from mpsearch.schemas.document import write_atomically
from mpsearch.sensitivity.protocol import ScoringTask

__all__ = ["content_key", "loss_identity", "measure_choices"]

SHARD = 32
"""Choices in one shard; fixed, so that neither results nor files depend on the workers."""

Choice = Mapping[str, Option]


def measure_choices(
    task: ScoringTask, choices: Sequence[Choice], loss: Loss, what: str
) -> NDArray[np.float64]:
    """Measure the loss of many choices of options on the task's data.

    Shards of 32 choices are written to the task's `cache_dir` as they are finished, and read back
    by the next run with the same model, data, loss and choices. With an `executor` they run there,
    each on a copy of the model; the numbers are those of a run without one.

    Args:
        task: Model, quantizer and data.
        choices: Layer -> option, all other layers in float.
        loss: What to measure.
        what: What is measured, for progress reports.

    Returns:
        The losses, float64, in the order of the choices.
    """
    shards = [choices[start : start + SHARD] for start in range(0, len(choices), SHARD)]
    files = _files(task, shards, loss)
    found = {number: _read(file, len(shards[number])) for number, file in files.items()}
    done = {number: values for number, values in found.items() if values is not None}

    def finish(number: int, values: list[float]) -> None:
        done[number] = values
        if number in files:
            write_atomically(files[number], json.dumps(values).encode())

    def report(extra: int = 0) -> None:
        count = sum(len(shards[number]) for number in done) + extra
        task.on_progress(Progress("profile", count, len(choices), what))

    missing = [number for number in range(len(shards)) if number not in done]
    if done:
        report()
    if task.executor is None or not missing:
        meter = AllocationMeter(task.quantizer, task.data.batches(), loss) if missing else None
        for number in missing:
            assert meter is not None
            size = len(shards[number])
            step = _stepping(report, size)
            finish(number, [m.loss for m in meter.measure_many(shards[number], step)])
            report()
    else:
        payload = _payload(task, loss)
        running = {
            task.executor.submit(_measure_shard, payload, list(shards[number])): number
            for number in missing
        }
        for future in as_completed(running):
            finish(running[future], future.result())
            report()
    return np.array([value for number in range(len(shards)) for value in done[number]])


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


def _measure_shard(payload: bytes, choices: list[Choice]) -> list[float]:
    """Measure one shard on a copy of the model; runs in a worker."""
    model, ranges, data, loss, threads = pickle.loads(payload)  # noqa: S301 - our own bytes
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)  # sums are split by threads, which shows in the last bits
    meter = AllocationMeter(Quantizer(model, ranges), data.batches(), as_loss(loss))
    return [measured.loss for measured in meter.measure_many(choices)]


def _files(task: ScoringTask, shards: Sequence[Sequence[Choice]], loss: Loss) -> dict[int, Path]:
    if task.cache_dir is None:
        return {}
    common = {
        "model": model_fingerprint(task.model),
        "data": task.data.fingerprint,
        "loss": loss_identity(loss),
        "ranges": sorted((name, repr(found)) for name, found in task.ranges.items()),
    }
    folder = Path(task.cache_dir) / "shards"
    files = {}
    for number, shard in enumerate(shards):
        menu = [
            sorted((layer, repr(o.weight), repr(o.activation)) for layer, o in choice.items())
            for choice in shard
        ]
        files[number] = folder / f"{content_key(choices=menu, **common)}.json"
    return files


def _read(file: Path, count: int) -> list[float] | None:
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise DocumentError(f"{file} is no shard of measurements ({error}); delete it") from error
    if not isinstance(values, list) or len(values) != count:
        raise DocumentError(f"{file} is no shard of {count} measurements; delete it")
    return [float(value) for value in values]


def content_key(**content: Any) -> str:
    """Hash what a result depends on.

    Args:
        **content: Names and JSON values.

    Returns:
        sha256 in hex.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def loss_identity(loss: Loss) -> str:
    """Name a loss by its content as far as Python shows it.

    Args:
        loss: The loss.

    Returns:
        Its name where it is a named one, else module, name and compiled code of its function.
    """
    if loss.name in known_losses() and as_loss(loss.name) is loss:
        return loss.name
    code = getattr(loss.function, "__code__", None)
    shown = (code.co_code.hex(), repr(code.co_consts), repr(code.co_names)) if code else ()
    where = getattr(loss.function, "__module__", ""), getattr(loss.function, "__qualname__", "")
    return content_key(name=loss.name, where=where, code=shown)
