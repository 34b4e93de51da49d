"""Long measurements in shards: resumed after a crash, spread over workers, the same bits always.

A measurement is cut by its size alone (`shard_plan`). Every shard is computed from the model, the
data and its own description, wherever that happens, and what the shards gave is put together in
their order. So neither the number of workers nor the order in which they finish shows in a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mpsearch.errors import DependencyError
from mpsearch.progress import Progress
from mpsearch.sensitivity.content import content_key, measured_content
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shard_files import Arrays, read_shard, write_shard
from mpsearch.sensitivity.shard_payload import (
    Compute,
    Payload,
    ShardContext,
    compute_shard,
    lent,
    packed,
)

__all__ = ["ShardRunner", "Work", "run_shards"]


@dataclass(frozen=True)
class Work:
    """A measurement cut into shards.

    Attributes:
        compute: What makes arrays of a shard.
        shards: Small frozen dataclasses whose `repr` says all that a result depends on beside the
            model, the data, the loss, the ranges and `settings`.
        steps: Steps of progress in every shard.
        what: What is done, for progress reports.
        settings: What else results depend on, as JSON values.
        before: Steps of the same work that other rounds have done.
        total: Steps of all rounds; None: those of these shards.
    """

    compute: Compute
    shards: Sequence[Any]
    steps: Sequence[int]
    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: int = 0
    total: int | None = None


def run_shards(task: ScoringTask, work: Work) -> list[Arrays]:
    """Compute shards, or read those that an earlier run finished.

    Args:
        task: Model, data and loss; the folder where finished shards are kept, and the executor
            that computes them, where there are such.
        work: The shards.

    Returns:
        The arrays of every shard, in their order.
    """
    return ShardRunner(task).run(work)


class ShardRunner:
    """Runs several measurements of one task, which is packed for workers only once."""

    def __init__(self, task: ScoringTask) -> None:
        """Prepare; nothing is computed yet.

        Args:
            task: As in `run_shards`.
        """
        self._task = task
        self._context = ShardContext(task)

    def run(self, work: Work) -> list[Arrays]:
        """Compute shards, or read those that an earlier run finished.

        Args:
            work: The shards.

        Returns:
            The arrays of every shard, in their order.
        """
        files = self._files(work)
        found = {number: read_shard(file) for number, file in files.items()}
        state = _State(
            self._task,
            work,
            files,
            {number: arrays for number, arrays in found.items() if arrays is not None},
        )
        missing = [number for number in range(len(work.shards)) if number not in state.done]
        # The clock of the time that is left starts here, not when the first worker comes back.
        state.report()
        if missing and self._task.executor is None:
            for number in missing:
                arrays = work.compute(self._context, work.shards[number], state.step)
                state.finish(number, arrays)
        elif missing and self._task.executor is not None:
            with lent(self._payload, self._task.executor) as payload:
                _spread(self._task.executor, payload, state, missing)
        return [state.done[number] for number in range(len(work.shards))]

    @cached_property
    def _payload(self) -> Payload:
        return packed(self._task)

    def _files(self, work: Work) -> dict[int, Path]:
        if self._task.cache_dir is None:
            return {}
        folder = Path(self._task.cache_dir) / "shards"
        compute = f"{work.compute.__module__}.{work.compute.__qualname__}"
        return {
            number: folder / f"{content_key(of=self._identity, compute=compute, **content)}.npz"
            for number, shard in enumerate(work.shards)
            for content in [{"settings": dict(work.settings), "shard": repr(shard)}]
        }

    @cached_property
    def _identity(self) -> str:
        """Name what all shards of the task depend on."""
        task = self._task
        return content_key(
            **measured_content(task.model, task.data, task.loss),
            ranges=sorted((name, repr(found)) for name, found in task.ranges.items()),
        )


@dataclass
class _State:
    """How far a measurement is."""

    task: ScoringTask
    work: Work
    files: Mapping[int, Path]
    done: dict[int, Arrays]

    def finish(self, number: int, arrays: Arrays) -> None:
        """Keep what a shard gave, and tell."""
        self.done[number] = arrays
        if number in self.files:
            write_shard(self.files[number], arrays)
        self.report()

    def step(self, steps: int) -> None:
        """Tell how many steps of a shard are done that is being computed here."""
        self.report(steps)

    def report(self, extra: int = 0) -> None:
        """Tell how many steps are done."""
        work = self.work
        count = work.before + sum(work.steps[number] for number in self.done) + extra
        total = sum(work.steps) if work.total is None else work.total
        self.task.on_progress(Progress("profile", count, total, work.what))


def _spread(executor: Executor, payload: Payload, state: _State, missing: Iterable[int]) -> None:
    """Compute shards in workers."""
    running: dict[Future[Arrays], int] = {}
    with ExitStack() as leaving:
        leaving.callback(lambda: [future.cancel() for future in running])
        try:
            for number in missing:
                shard = state.work.shards[number]
                future = executor.submit(
                    compute_shard, payload.content, payload.key, state.work.compute, shard
                )
                running[future] = number
            for future in as_completed(running):
                state.finish(running[future], future.result())
        except BrokenExecutor as error:
            _keep_finished(running, state)
            raise DependencyError(_broken(state, error)) from error


def _keep_finished(running: Mapping[Future[Arrays], int], state: _State) -> None:
    """Take what came back before the workers were lost."""
    for future, number in running.items():
        finished = future.done() and not future.cancelled() and future.exception() is None
        if finished and number not in state.done:
            state.finish(number, future.result())


def _broken(state: _State, error: BaseException) -> str:
    count, total = len(state.done), len(state.work.shards)
    advice = (
        f"they are kept in {state.task.cache_dir}: the same call goes on from there"
        if state.task.cache_dir is not None
        else "give cache_dir to keep what is finished"
    )
    return (
        f"the workers of the executor were lost with {count} of {total} shards finished ({error}); "
        f"{advice}. A worker that was killed often ran out of memory: take fewer workers, or a "
        "memory_limit"
    )
