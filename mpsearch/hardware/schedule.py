"""The schedule of a model: its operations in order, and the memory each makes, reads and keeps.

Operations are observed below autograd while the model runs on one batch. A tensor is a storage:
views share it, operations in place write to it, and it lives from the operation that makes it to
the last one that reads or writes it. Parameters and buffers are not activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mpsearch.models.kinds import weight_sites
from mpsearch.models.running import evaluation_mode, forward

__all__ = ["Schedule", "StoredTensor", "record_schedule"]

INPUT = -1
"""The step before the first operation, in which the model's input is there already."""


@dataclass
class StoredTensor:
    """One activation in memory.

    Attributes:
        size: Bytes as the float model stores it.
        values: How many values these are.
        born: Step whose operation makes it; -1 for the model's input.
        last_use: Last step that reads or writes it; the last of all for the model's output.
        released: Step after which the running model let go of it, which Python may do later than
            after its last use: a caller's variable keeps a block's input until the block returns.
        producer: Layer whose product it holds, directly or through operations without weights;
            None for the model's input and for constants.
        is_float: Whether it holds floating-point values, which an option can change the format of.
    """

    size: int
    values: int
    born: int
    last_use: int
    producer: str | None
    is_float: bool
    released: int = -1


@dataclass
class Schedule:
    """What happens in one forward pass.

    Attributes:
        steps: Names of the operations that touch activations, in order.
        tensors: The activations.
    """

    steps: list[str] = field(default_factory=list)
    tensors: list[StoredTensor] = field(default_factory=list)

    def live(self, step: int, *, as_run: bool = False) -> Iterator[StoredTensor]:
        """Go through what is in memory while an operation runs: what it reads, makes and skips.

        Args:
            step: Number of the operation.
            as_run: Count what the running Python model still held, not what is needed later.

        Yields:
            The tensors.
        """
        for tensor in self.tensors:
            if tensor.born <= step <= (tensor.released if as_run else tensor.last_use):
                yield tensor

    def peak(self, *, as_run: bool = False) -> int:
        """Compute the peak of the float model.

        Args:
            as_run: As in `live`.

        Returns:
            Bytes, the model's input included.
        """
        change = [0] * (len(self.steps) + 1)
        for tensor in self.tensors:
            change[max(tensor.born, 0)] += tensor.size
            change[(tensor.released if as_run else tensor.last_use) + 1] -= tensor.size
        return max(accumulate(change[:-1]))


def record_schedule(model: nn.Module, inputs: Tensor) -> Schedule:
    """Run the model once and record its schedule.

    Args:
        model: The model; unchanged afterwards, run in evaluation mode without gradients.
        inputs: One batch; its size is the batch that memory is counted for.

    Returns:
        The schedule.
    """
    own = inputs.clone()
    recorder = _Recorder(model, own)
    with torch.no_grad(), evaluation_mode(model):
        with recorder:
            output = forward(model, own, owned=True)
        recorder.finish(output)
    return recorder.schedule


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.schedule = Schedule()
        # A weak reference keeps the key of a storage from being given to another one.
        self._references: dict[int, StorageWeakRef] = {}
        self._tensors: dict[int, StoredTensor] = {}
        self._held: set[int] = set()
        self._order: dict[str, int] = {}
        self._second: set[int] = set()
        self._weights: dict[int, str] = {}
        self._constants: set[int] = set()
        sites = weight_sites(model)
        names = {p: site.name for site in sites.by_name.values() for p in site.parameters}
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ):
            key = self._key(tensor)
            self._constants.add(key)
            if name in names:
                self._weights[key] = names[name]
        self._add(inputs, INPUT, None)

    def finish(self, output: Tensor) -> None:
        """Keep the output to the end, and settle what was never let go of."""
        last = len(self.schedule.steps) - 1
        self._tensors[self._key(output)].last_use = last
        # A second result that nobody reads, such as the indices of a pooling, is scratch.
        self.schedule.tensors = [
            tensor
            for tensor in self.schedule.tensors
            if tensor.last_use > tensor.born or id(tensor) not in self._second
        ]
        for tensor in self._tensors.values():
            if tensor.released < 0:
                tensor.released = last

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        self._note_released()
        output = func(*args, **(kwargs or {}))
        read = {self._key(tensor): tensor for tensor in _tensors((args, kwargs or {}))}
        made = {self._key(tensor): tensor for tensor in _tensors(output)}
        new = {key: tensor for key, tensor in made.items() if self._is_new(key)}
        if not new and not self._touches(read, func):
            return output
        weights = [self._weights[key] for key in read if key in self._weights]
        if not self._activations(read) and self._constants.intersection(read):
            # Something computed from parameters alone, such as a cast or normalised weight.
            self._constants.update(new)
            self._weights.update(dict.fromkeys(new, weights[-1]) if weights else {})
            return output
        step = self._step(func, weights)
        producer = self._producer(read, weights)
        for key in self._activations(read):
            self._tensors[key].last_use = step
        for number, tensor in enumerate(new.values()):
            stored = self._add(tensor, step, producer)
            if number:
                self._second.add(id(stored))
        return output

    def _touches(self, read: Mapping[int, Tensor], func: Any) -> bool:  # noqa: ANN401
        """Return whether an operation that makes no storage computes, instead of viewing."""
        views = any(result.alias_info for result in func._schema.returns)
        return bool(self._activations(read)) and (func._schema.is_mutable or not views)

    def _activations(self, read: Mapping[int, Tensor]) -> list[int]:
        return [key for key in read if key in self._tensors]

    def _is_new(self, key: int) -> bool:
        return key not in self._tensors and key not in self._constants

    def _step(self, func: Any, weights: list[str]) -> int:  # noqa: ANN401
        name = f"{len(self.schedule.steps)}:{func._schema.name.removeprefix('aten::')}"
        self.schedule.steps.append(f"{name} of {weights[-1]}" if weights else name)
        for layer in weights:
            self._order[layer] = len(self.schedule.steps)
        return len(self.schedule.steps) - 1

    def _producer(self, read: Mapping[int, Tensor], weights: list[str]) -> str | None:
        """Return the layer whose weight is used, or the latest one that the inputs come from."""
        if weights:
            return weights[-1]
        sources = {self._tensors[key].producer for key in self._activations(read)} - {None}
        return max((s for s in sources if s), key=lambda s: self._order[s], default=None)

    def _add(self, tensor: Tensor, step: int, producer: str | None) -> StoredTensor:
        size = tensor.untyped_storage().nbytes()
        known = StoredTensor(
            size=size,
            values=size // tensor.element_size(),
            born=step,
            last_use=step,
            producer=producer,
            is_float=tensor.is_floating_point(),
        )
        self._tensors[self._key(tensor)] = known
        self._held.add(self._key(tensor))
        self.schedule.tensors.append(known)
        return known

    def _key(self, tensor: Tensor) -> int:
        if tensor.layout != torch.strided:
            return 0
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        return int(self._references.setdefault(reference.cdata, reference).cdata)

    def _note_released(self) -> None:
        gone = [
            key
            for key in self._held
            if self._references[key].expired()  # type: ignore[no-untyped-call]
        ]
        for key in gone:
            self._tensors[key].released = len(self.schedule.steps) - 1
            self._held.remove(key)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
