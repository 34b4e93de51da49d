"""Measuring many choices of options on the same data, re-using what did not change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mpsearch.engine.marking import refuse_quantized
from mpsearch.engine.prefix import DivergedError, Recording, record
from mpsearch.engine.quantizer import Quantizer
from mpsearch.errors import DataError, InputError, MpsearchError
from mpsearch.formats import Option, parse_option
from mpsearch.freed_memory import freed_memory_kept
from mpsearch.losses import Loss, Tally
from mpsearch.models.dataset import Batch
from mpsearch.models.inputs import hooked_module
from mpsearch.models.running import evaluation_mode, forward
from mpsearch.schemas import Measurement

__all__ = ["DEFAULT_PREFIX_MEMORY", "AllocationMeter"]

Choice = Mapping[str, Option]

DEFAULT_PREFIX_MEMORY = 2 * 2**30
"""Bytes of recorded outputs that are kept by default."""

FLOAT = parse_option("float")


class AllocationMeter:
    """Measures loss and metric of one choice after another.

    A choice that differs from the base only in later layers is computed from the first layer that
    differs; the answer is, bit for bit, that of a full run.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        batches: Iterable[Batch],
        loss: Loss,
        *,
        base: Choice | None = None,
        memory_limit: int = DEFAULT_PREFIX_MEMORY,
    ) -> None:
        """Prepare; nothing is run yet.

        Args:
            quantizer: Holds the model and its calibrated ranges.
            batches: What to measure on; gone through once and kept.
            loss: Loss and metric. Where it compares with the float model's output, that is
                computed here.
            base: The choice that others differ little from; by default all layers in float.
            memory_limit: Most bytes of recorded outputs to keep, for all batches together; 0 runs
                every choice in full.

        Raises:
            DataError: There is no batch.
            InputError: The memory limit is negative.
        """
        if memory_limit < 0:
            raise InputError(f"memory limit {memory_limit} B is negative; 0 runs all in full")
        self._quantizer = quantizer
        self._batches = list(batches)
        if not self._batches:
            raise DataError("there is no input to measure on")
        self._loss = loss
        self._base = dict(base or {})
        self._limit = memory_limit
        self._recordings: dict[int, Recording] = {}
        self._references: dict[int, Tensor] = {}
        self._notes: dict[str, None] = {}
        self._reusable = memory_limit > 0
        self._state = _state(quantizer.model)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why runs had to be made in full, if they had to."""
        return tuple(self._notes)

    def measure(self, choice: Choice) -> Measurement:
        """Measure one choice; recordings are kept for the next as far as memory allows.

        Args:
            choice: Layer -> option; all other layers stay in float, also those that the base
                quantizes.

        Returns:
            Loss and metric over all batches.
        """
        self._prepare()
        tally = Tally(self._loss)
        with torch.no_grad(), evaluation_mode(self._quantizer.model):
            for index, (inputs, _) in enumerate(self._batches):
                output = self._output(index, choice, self._recorded(index, keep=True))
                tally.add(inputs, output, self._target(index))
        return tally.measurement()

    def measure_many(
        self, choices: Sequence[Choice], on_step: Callable[[int, int], None] | None = None
    ) -> list[Measurement]:
        """Measure several choices, all of them on one batch before the next.

        Only one batch's recording is needed at a time, so all of the memory is for that one.

        Args:
            choices: Layer -> option, each as in `measure`.
            on_step: Called after every run of a batch with the number of runs done and of all.

        Returns:
            Their measurements, in order; the same numbers as `measure` gives.
        """
        return [tally.measurement() for tally in self.tally_many(choices, on_step)]

    @freed_memory_kept()
    def tally_many(
        self, choices: Sequence[Choice], on_step: Callable[[int, int], None] | None = None
    ) -> list[Tally]:
        """Measure as `measure_many` does, and leave the batches apart.

        Args:
            choices: As in `measure_many`.
            on_step: As in `measure_many`.

        Returns:
            What was counted of every choice, batch by batch.
        """
        self._prepare()
        tallies = [Tally(self._loss) for _ in choices]
        total = len(choices) * len(self._batches)
        with torch.no_grad(), evaluation_mode(self._quantizer.model):
            for index, (inputs, _) in enumerate(self._batches):
                recording = self._recorded(index, keep=len(self._batches) == 1)
                target = self._target(index)
                for number, (choice, tally) in enumerate(zip(choices, tallies, strict=True), 1):
                    tally.add(inputs, self._output(index, choice, recording), target)
                    if on_step is not None:
                        on_step(index * len(choices) + number, total)
        return tallies

    def _prepare(self) -> None:
        """Refuse options that are on, and forget what was recorded of weights since changed."""
        refuse_quantized(self._quantizer.model)
        if self._quantizer.active:
            raise InputError(
                "the quantizer has options on already, so choices would be measured on top of "
                "them; leave its `options` context before measuring"
            )
        state = _state(self._quantizer.model)
        if state != self._state:
            self._state = state
            self._recordings.clear()
            self._references.clear()

    def _recorded(self, index: int, *, keep: bool) -> Recording | None:
        """Give the recording of a batch, making it if that is worth while."""
        if index in self._recordings or not self._reusable:
            return self._recordings.get(index)
        held = sum(recording.memory for recording in self._recordings.values())
        free = self._limit - held
        if free <= 0:
            return None
        try:
            with self._quantizer.options(self._base) as model:
                recording = record(model, self._batches[index][0], free)
        except MpsearchError as error:
            # Some code cannot be observed. Where the model itself is at fault, the run in full
            # that follows raises the same again.
            self._give_up(f"the model cannot be observed: {error}")
            return None
        if recording.obstacles:
            self._give_up(*recording.obstacles)
            return None
        if keep:
            self._recordings[index] = recording
        return recording

    def _give_up(self, *reasons: str) -> None:
        """Run everything in full from here on, and say why."""
        self._notes.update(dict.fromkeys(f"no prefix is re-used: {reason}" for reason in reasons))
        self._reusable = False
        self._recordings.clear()

    def _output(self, index: int, choice: Choice, recording: Recording | None) -> Tensor:
        inputs = self._batches[index][0]
        if recording is not None and self._reusable:
            until = recording.noticed(*self._changes(choice))
            if until == float("inf"):
                return recording.output
            try:
                with self._quantizer.options(choice) as model:
                    return recording.replay(model, inputs, until)
            except DivergedError as error:
                self._give_up(str(error))
        with self._quantizer.options(choice) as model:
            return forward(model, inputs)

    def _changes(self, choice: Choice) -> tuple[list[str], list[str]]:
        """Find parameters and modules that a choice treats unlike the base does."""
        parameters: list[str] = []
        modules: list[str] = []
        wanted, based = self._by_site(choice), self._by_site(self._base)
        for name in wanted.keys() | based.keys():
            site = self._quantizer.sites.by_name[name]
            new, old = wanted.get(name, {}), based.get(name, {})
            if _weight_format(new) != _weight_format(old):
                parameters += site.parameters
            modules += [
                hooked_module(self._quantizer.model, use.module)
                for use in site.uses
                if use.takes != "nothing"
                and _activation_format(new, use.layer) != _activation_format(old, use.layer)
            ]
        return parameters, modules

    def _by_site(self, choice: Choice) -> dict[str, dict[str, Option]]:
        found: dict[str, dict[str, Option]] = {}
        for layer, option in choice.items():
            site = self._quantizer.sites.find(self._quantizer.model, layer)
            found.setdefault(site.name, {})[layer] = option
        return found

    def _target(self, index: int) -> Tensor | None:
        inputs, target = self._batches[index]
        if self._loss.target == "data":
            return target
        if index not in self._references:
            recording = self._recordings.get(index)
            quantized = any(not option.is_float for option in self._base.values())
            if recording is not None and not quantized:
                self._references[index] = recording.output
            else:
                self._references[index] = forward(self._quantizer.model, inputs)
        return self._references[index]


def _state(model: nn.Module) -> list[tuple[int, int]]:
    """What tells that weights or buffers were changed or moved."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _weight_format(options: Mapping[str, Option]) -> object:
    return next(iter(options.values()), FLOAT).weight


def _activation_format(options: Mapping[str, Option], layer: str) -> object:
    return options.get(layer, next(iter(options.values()), FLOAT)).activation
