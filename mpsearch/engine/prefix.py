"""Re-using what comes before a change: recorded outputs stand for the calls that produced them.

When an option changes, everything computed before the first operation that can notice is computed
from the same numbers by the same operations, so its results are the same bits. A recording keeps
the outputs of calls; a replay runs the model with every call that had ended before that operation
answered from the recording, at the outermost level, and everything else executed. The order of
calls is checked against the recording, call by call, as long as answers are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.engine.patching import flatten, interposable, interposed, rebuild
from mpsearch.engine.trace import Trace, TracedCall, trace
from mpsearch.models.running import forward

__all__ = ["DivergedError", "Recording", "record"]


class DivergedError(Exception):
    """A replay met another order of calls than was recorded; the model has to be run in full."""


@dataclass(frozen=True)
class _Answer:
    """The output of a call.

    Attributes:
        output: As it was returned.
        versions: Version of each tensor when it was returned.
        copied: Whether the tensors are copies, to be copied again for every use because the model
            writes to them.
    """

    output: object
    versions: tuple[int, ...]
    copied: bool

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the output, in order."""
        found: list[Tensor] = []
        flatten(self.output, found)
        return found

    @property
    def intact(self) -> bool:
        """Whether nothing was written to the tensors since they were returned."""
        return tuple(tensor._version for tensor in self.tensors) == self.versions


@dataclass(frozen=True)
class Recording:
    """One batch run with a choice of options, and the outputs kept of it.

    Attributes:
        output: The model's output.
        trace: What happened.
        answers: Number of the call -> its output.
        memory: Bytes held by the answers.
        obstacles: Why nothing can be re-used; empty where it can.
    """

    output: Tensor
    trace: Trace
    answers: dict[int, _Answer]
    memory: int
    obstacles: tuple[str, ...] = ()

    def noticed(self, parameters: Collection[str], modules: Collection[str]) -> float:
        """Find the first event that depends on a change.

        Args:
            parameters: Parameters whose values change.
            modules: Modules whose inputs are changed on entering.

        Returns:
            The event; infinity when nothing reads what changes.
        """
        events = [self._first_use(name) for name in parameters]
        events += [self._first_start(name) for name in modules]
        return min(events, default=float("inf"))

    def _first_use(self, parameter: str) -> float:
        owner = parameter.rpartition(".")[0]
        seen = [self.trace.first_start.get(owner), self.trace.first_read.get(parameter)]
        found = [event for event in seen if event is not None]
        # Kernels that are not torch's own read weights unseen; then the surroundings count.
        return min(found) if found else self._first_start(owner)

    def _first_start(self, module: str) -> float:
        # A module may be used without being called, inside a fused kernel of one around it, which
        # then decides on entering whether to take that kernel.
        while module and module not in self.trace.first_start:
            module = module.rpartition(".")[0]
        return self.trace.first_start[module] if module else 0

    def replay(self, model: nn.Module, inputs: Tensor, until: float) -> Tensor:
        """Run the model, answering calls that ended before an event.

        Args:
            model: The model, with the changed options on, in evaluation mode, gradients off.
            inputs: The batch that was recorded.
            until: From `noticed`.

        Returns:
            The output, bit for bit what running the model in full returns.
        """
        player = _Player(self.trace.calls, self.answers, until)
        modules = interposable(model)
        needed = dict.fromkeys(call.module for call in self.trace.calls if call.start < until)
        with interposed([(name, modules[name]) for name in needed], player.call):
            output = forward(model, inputs)
        for number in player.used:
            # Data may have led the model to write where it did not write when it was recorded.
            # This run saw what a full one sees, but the next would not.
            if not self.answers[number].intact:
                del self.answers[number]
        return output


def record(model: nn.Module, inputs: Tensor, memory_limit: int) -> Recording:
    """Run a batch and keep outputs of calls, as many as fit into memory.

    The model is run twice in full, which also shows whether it is deterministic, and once
    answered from the recording as far as possible, which must give the same bits.

    Args:
        model: The model in evaluation mode; run where gradients are off.
        inputs: The batch.
        memory_limit: Most bytes to keep.

    Returns:
        The recording; empty, with the reason in `obstacles`, where nothing can be re-used.
    """
    output, found = trace(model, inputs)
    if found.obstacles:
        return Recording(output, found, {}, 0, tuple(found.obstacles))
    recorder = _Recorder(found.calls, _planned(found, memory_limit))
    try:
        with interposed(interposable(model).items(), recorder.call):
            again = forward(model, inputs)
    except DivergedError as error:
        return Recording(output, found, {}, 0, (str(error),))
    if not _same_bits(output, again):
        return Recording(output, found, {}, 0, ("two runs of the model give different outputs",))
    answers, memory = recorder.kept()
    recording = Recording(output, found, answers, memory)
    try:
        same = _same_bits(output, recording.replay(model, inputs, float("inf")))
    except DivergedError:
        same = False
    if not same:
        return Recording(output, found, {}, 0, ("a replay of the model gives another output",))
    return recording


def _planned(found: Trace, memory_limit: int) -> set[int]:
    """Choose calls to keep: outer before inner, then those that took longest per byte."""
    last = max(found.first_read.values(), default=0)
    useful = [
        number
        for number, call in enumerate(found.calls)
        if call.repeatable and call.end < last and call.size
    ]
    useful.sort(key=lambda n: (found.calls[n].depth, -found.calls[n].seconds / found.calls[n].size))
    planned: set[int] = set()
    free = memory_limit
    for number in useful:
        if found.calls[number].size <= free:
            free -= found.calls[number].size
            planned.add(number)
    return planned


class _Recorder:
    """Keeps the planned outputs while the model runs."""

    def __init__(self, calls: list[TracedCall], planned: set[int]) -> None:
        self._calls = calls
        self._planned = planned
        self._next = 0
        self._answers: dict[int, _Answer] = {}

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        """Run a call and keep its output."""
        number = self._next
        _check_order(self._calls, number, name)
        self._next += 1
        output = function(*args, **kwargs)
        if number in self._planned:
            tensors: list[Tensor] = []
            if flatten(output, tensors):
                self._keep(number, output, tensors)
        return output

    def _keep(self, number: int, output: object, tensors: list[Tensor]) -> None:
        copied = self._calls[number].rewritten
        if copied:
            if not all(map(_dense, tensors)):
                return  # a copy would lie in memory another way and may be computed with otherwise
            output = rebuild(output, iter([tensor.clone() for tensor in tensors]))
        versions = tuple(tensor._version for tensor in tensors)
        self._answers[number] = _Answer(output, versions, copied)

    def kept(self) -> tuple[dict[int, _Answer], int]:
        """Return the answers that are still what was returned, and the bytes they hold."""
        kept: dict[int, _Answer] = {}
        storages: dict[int, int] = {}
        for number, answer in self._answers.items():
            if answer.intact:
                kept[number] = answer
                for tensor in answer.tensors:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
        return kept, sum(storages.values())


class _Player:
    """Answers calls from a recording up to an event."""

    def __init__(self, calls: list[TracedCall], answers: dict[int, _Answer], until: float) -> None:
        self._calls = calls
        self._answers = answers
        self._until = until
        self._next = 0
        self.used: list[int] = []

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        """Answer a call, or run it."""
        number = self._next
        if number >= len(self._calls) or self._calls[number].start >= self._until:
            return function(*args, **kwargs)
        _check_order(self._calls, number, name)
        answer = self._answers.get(number)
        if answer is None or self._calls[number].end >= self._until:
            self._next += 1
            return function(*args, **kwargs)
        self._next += self._calls[number].calls
        self.used.append(number)
        tensors = answer.tensors
        if answer.copied:
            tensors = [tensor.clone() for tensor in tensors]
        return rebuild(answer.output, iter(tensors))


def _check_order(calls: list[TracedCall], number: int, name: str) -> None:
    expected = calls[number].module if number < len(calls) else "the end"
    if expected != name:
        raise DivergedError(f"the order of calls changes: {name} instead of {expected}")


def _dense(tensor: Tensor) -> bool:
    """Whether a copy lies in memory the same way: no gaps, no overlaps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or (
        one.shape == other.shape
        and bool(torch.equal(one.isnan(), other.isnan()))
        and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
    )
