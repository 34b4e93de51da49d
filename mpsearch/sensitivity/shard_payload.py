"""What workers need to measure shards: packed once, unpacked once by every worker."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mpsearch.errors import InputError
from mpsearch.freed_memory import freed_memory_kept
from mpsearch.losses import as_loss, known_losses
from mpsearch.progress import ignore_progress
from mpsearch.quantize import Quantizer
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shard_files import Arrays

__all__ = ["Compute", "Payload", "ShardContext", "compute_shard", "lent", "packed"]

BY_FILE = 2**20
"""Bytes of a payload from which processes of this machine read it from a file: a pool writes the
arguments of every call into a pipe."""


@dataclass(frozen=True)
class ShardContext:
    """Where shards are computed.

    Attributes:
        task: The task; in a worker with a copy of the model.
        kept: What one shard leaves for the next one computed here, such as a graph. Nothing that
            changes a result.
    """

    task: ScoringTask
    kept: dict[str, Any] = field(default_factory=dict)


Compute = Callable[[ShardContext, Any, Callable[[int], None]], Arrays]
"""Context, shard and a function to tell the steps done so far, to the shard's arrays. A function at
the top of its module, so that workers find it."""


@dataclass(frozen=True)
class Payload:
    """A packed task.

    Attributes:
        content: The pickle, or the file that holds it.
        key: sha256 of the pickle, in hex.
        size: Bytes of the pickle.
    """

    content: bytes | Path
    key: str
    size: int


def packed(task: ScoringTask) -> Payload:
    """Pack what workers need: the model, the data to score on, and how.

    Args:
        task: The task.

    Returns:
        The payload, in memory.

    Raises:
        InputError: Something of it cannot be pickled.
    """
    # Named losses go by name: their functions are lambdas and closures of ours.
    loss = task.loss.name if _is_named(task) else task.loss
    data = replace(task.data, held_out_inputs=None, held_out_targets=None)
    lean = {
        "model": task.model,
        "layers": list(task.layers),
        "options": list(task.options),
        "data": data,
        "loss": loss,
        "seed": task.seed,
        "ranges": dict(task.ranges),
        "memory_limit": task.memory_limit,
    }
    arithmetic = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        content = pickle.dumps((lean, arithmetic))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"the model or the loss {task.loss.name} cannot be sent to workers: {error}; "
            "define them at the top of a module, or leave out the executor"
        ) from error
    return Payload(content, hashlib.sha256(content).hexdigest(), len(content))


@contextmanager
def lent(payload: Payload, executor: Executor) -> Iterator[Payload]:
    """Put a large payload where an executor's workers get it without a copy for every shard.

    Args:
        payload: The payload, in memory.
        executor: Where the shards run.

    Yields:
        The payload to send: in a file for processes of this machine, gone on leaving; as it was
        for threads, which share it, and for other executors, which get the same object with every
        shard and can send it once.
    """
    if not isinstance(executor, ProcessPoolExecutor) or payload.size < BY_FILE:
        yield payload
        return
    assert isinstance(payload.content, bytes)
    with tempfile.TemporaryDirectory(prefix="mpsearch-shards-") as folder:
        file = Path(folder) / "payload"
        file.write_bytes(payload.content)
        yield replace(payload, content=file)


@freed_memory_kept()
def compute_shard(content: bytes | Path, key: str, compute: Compute, shard: Any) -> Arrays:  # noqa: ANN401 - any kind of shard
    """Compute a shard in a worker.

    Args:
        content: As in `Payload`.
        key: As in `Payload`.
        compute: What to do.
        shard: With which shard.

    Returns:
        The shard's arrays.
    """
    return compute(_context(content, key), shard, _silent)


_LAST = threading.local()
"""The last context of every thread: a model is changed while it is measured, so none is shared."""


def _context(content: bytes | Path, key: str) -> ShardContext:
    if getattr(_LAST, "key", None) != key:
        _LAST.key = _LAST.context = None  # free the old model before the new one comes
        lean, arithmetic = pickle.loads(content if isinstance(content, bytes) else _read(content))  # noqa: S301 - our own bytes
        _LAST.context = ShardContext(_unpacked(lean))
        _LAST.arithmetic = arithmetic
        _LAST.key = key
    _calculate_like(*_LAST.arithmetic)
    context: ShardContext = _LAST.context
    return context


def _read(file: Path) -> bytes:
    return file.read_bytes()


def _unpacked(lean: dict[str, Any]) -> ScoringTask:
    return ScoringTask(
        **lean | {"loss": as_loss(lean["loss"])},
        quantizer=Quantizer(lean["model"], lean["ranges"]),
        on_progress=ignore_progress,
    )


def _calculate_like(threads: int, precision: str) -> None:
    """Calculate as the sender does: sums are split by threads, which shows in the last bits."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)


def _is_named(task: ScoringTask) -> bool:
    return task.loss.name in known_losses() and as_loss(task.loss.name) is task.loss


def _silent(_: int) -> None:
    """Tell nothing: a worker's progress is known when its shard is there."""
