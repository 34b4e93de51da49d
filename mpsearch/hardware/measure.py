"""Cost tables measured on this machine: every layer's real kernel, timed at every option."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.engine.quantizer import layer_module
from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Option
from mpsearch.hardware.cpu_kernels import Kernel, Unsupported, int8_accumulation, kernel_for
from mpsearch.hardware.cuda_kernels import cuda_conditions, cuda_kernel_for, why_no_cuda
from mpsearch.hardware.machine import processor
from mpsearch.hardware.rounds import FEWEST
from mpsearch.hardware.runtime_session import least_disturbed
from mpsearch.hardware.shapes import TIMED, layer_keys
from mpsearch.hardware.table import CostTable
from mpsearch.menu import parse_options
from mpsearch.models.layers import Layer, evaluation_mode, find_layers, forward
from mpsearch.progress import OnProgress, Progress, ignore_progress

__all__ = ["Timing", "measure_kernels", "time_kernels"]


@dataclass(frozen=True)
class Timing:
    """How kernels are timed.

    Attributes:
        rounds: Samples of every kernel; kernels take turns, round after round.
        sample_seconds: Shortest time of a sample; fast kernels run several times in one.
        warm_up: Runs that are not timed.
        threads: Threads of a kernel on the CPU.
        most_seconds: After this long by the clock, ten rounds of every kernel are enough.
    """

    rounds: int = 30
    sample_seconds: float = 0.001
    warm_up: int = 3
    threads: int = 1
    most_seconds: float = 150.0


DEFAULT_TIMING = Timing()
FLUSHED = 2**28
"""Bytes that are written to push everything else out of a GPU's cache; none is that large."""
MOST_RUNS = 20
TOGETHER = 8
"""Shapes whose kernels take turns; the table is saved after each such set."""


def measure_kernels(
    model: nn.Module,
    inputs: Tensor,
    options: Sequence[str],
    *,
    device: str = "cpu",
    batch: int = 1,
    timing: Timing = DEFAULT_TIMING,
    known: CostTable | None = None,
    save_to: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> CostTable:
    """Time torch's kernels for the convolutions and linear layers of a model, each alone.

    Every shape is timed once. What enters a layer is what the model feeds it. A layer's bias and
    the rounding of its int8 output on the CPU are part of the kernel; rounding its input is not,
    and nor is anything between layers.

    Args:
        model: The model; unchanged afterwards.
        inputs: A batch that it accepts; its first input is repeated.
        options: Names of options; those without a kernel are listed as unavailable.
        device: `cpu` or `cuda`.
        batch: Inputs processed together.
        timing: How to time.
        known: A table of this machine to go on with; what it holds is not timed again.
        save_to: Where to save the table after every few shapes, so that little is lost.
        on_progress: Called after every few shapes.

    Returns:
        The table, latency in microseconds, the spread being the distance of the quartiles.

    Raises:
        ModelError: The model has no layer that could be timed at any of the options.
        InputError: `known` was measured on another machine or under other conditions, or there is
            no such device.
    """
    prepare = _preparer(device)
    menu = parse_options(options)
    with _threads(timing.threads):
        conditions = _conditions(device)
        if known is not None and (known.conditions, known.batch) != (conditions, batch):
            raise InputError(
                f"the table to go on with was measured with {known.conditions} and batch "
                f"{known.batch}, this is {conditions} and batch {batch}; write to another file"
            )
        first = inputs[:1].expand(batch, *inputs.shape[1:]).clone()
        layers = [x for x in find_layers(model, (first[:1], None)).layers if x.kind in TIMED]
        entered = _entered(model, first, [layer.name for layer in layers])
        rows = {_place(entry): entry for entry in (known.model_dump()["entries"] if known else ())}
        missing = {(m.op or "", m.option): m.reason for m in (known.unavailable if known else ())}
        unique = list({tuple(layer_keys(x, batch).items()): x for x in layers}.values())
        deadline = time.monotonic() + timing.most_seconds
        for start in range(0, len(unique), TOGETHER):
            some = unique[start : start + TOGETHER]
            kernels: list[tuple[dict[str, Any], Kernel]] = []
            for layer in some:
                module = layer_module(model, layer.name)
                for option in menu:
                    entry = _entry(layer, batch, option)
                    if _place(entry) in rows:
                        continue
                    kernel = prepare(module, entered[layer.name], option)
                    if isinstance(kernel, Unsupported):
                        missing[layer.kind, option.name] = kernel.reason
                    else:
                        kernels.append((entry, kernel))
            share = (deadline - time.monotonic()) * len(some) / (len(unique) - start)
            run = replace(timing, most_seconds=share)
            times = time_kernels([kernel for _, kernel in kernels], run, device)
            for (entry, _), (seconds, spread) in zip(kernels, times, strict=True):
                rows[_place(entry)] = entry | {
                    "values": {"latency": seconds * 1e6},
                    "spread": {"latency": spread * 1e6},
                }
            if rows and save_to is not None:
                _table(list(rows.values()), missing, batch, conditions, device).save(save_to)
            on_progress(Progress("measure", start + len(some), len(unique), "shapes of layers"))
    if not rows:
        raise ModelError(
            f"no layer of {type(model).__name__} can be timed at {', '.join(options)}: "
            + "; ".join(sorted(set(missing.values())) or ["it has no Conv2d or Linear"])
        )
    return _table(list(rows.values()), missing, batch, conditions, device)


def time_kernels(
    kernels: Sequence[Kernel], timing: Timing = DEFAULT_TIMING, device: str = "cpu"
) -> list[tuple[float, float]]:
    """Time kernels in turn, so that a slow spell of the machine meets all of them.

    Args:
        kernels: Each runs once when called.
        timing: How to time.
        device: `cpu` or `cuda`.

    Returns:
        For each the tenth percentile of its seconds, and the distance between their quartiles.
        On one CPU thread the clock is the thread's processor time.
    """
    sample = _cuda_sample() if device == "cuda" else _cpu_sample(timing.threads)
    deadline = time.monotonic() + timing.most_seconds
    repeats: list[int] = []
    samples: list[list[float]] = []
    with torch.inference_mode():
        for kernel in kernels:
            for _ in range(timing.warm_up):
                kernel()
            repeats.append(max(1, round(timing.sample_seconds / max(sample(kernel, 1), 1e-7))))
            samples.append([])
        for turn in range(timing.rounds):
            if turn >= FEWEST and time.monotonic() > deadline:
                break
            for kernel, runs, seconds in zip(kernels, repeats, samples, strict=True):
                seconds.append(sample(kernel, runs))
    quartiles = [np.percentile(each, [25, 75]) for each in samples]
    return [
        (least_disturbed(each), float(high - low))
        for each, (low, high) in zip(samples, quartiles, strict=True)
    ]


def _cpu_sample(threads: int) -> Callable[[Kernel, int], float]:
    clock = time.thread_time if threads == 1 else time.perf_counter

    def sample(kernel: Kernel, runs: int) -> float:
        started = clock()
        for _ in range(runs):
            kernel()
        return (clock() - started) / runs

    return sample


def _cuda_sample() -> Callable[[Kernel, int], float]:
    """Time each run by events, the second-level cache emptied before it.

    While the GPU is busy with that, Python has launched the kernel: launches are not in the times
    (the method of `triton.testing.do_bench`).

    Returns:
        A function of a kernel and how often to run it: mean seconds.
    """
    other = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")

    def sample(kernel: Kernel, runs: int) -> float:
        count = min(runs, MOST_RUNS)
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            for _ in range(count)
        ]
        for start, end in events:
            other.zero_()
            start.record()
            kernel()
            end.record()
        torch.cuda.synchronize()
        return statistics.fmean(start.elapsed_time(end) for start, end in events) * 1e-3

    return sample


def _preparer(device: str) -> Callable[[nn.Module, Tensor, Option], Kernel | Unsupported]:
    if device == "cpu":
        return kernel_for
    if device != "cuda":
        raise InputError(f"device {device!r} is not measured; cpu and cuda are")
    if (reason := why_no_cuda()) is not None:
        raise InputError(f"device cuda cannot be measured: {reason}")
    return cuda_kernel_for


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _entered(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what enters each layer in its first call."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:  # noqa: ANN401
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found.setdefault(name, arguments[0].detach().clone())

        return hook

    handles = [
        layer_module(model, name).register_forward_pre_hook(note(name))
        for name in names
        if isinstance(layer_module(model, name), (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad(), evaluation_mode(model):
            forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _entry(layer: Layer, batch: int, option: Option) -> dict[str, Any]:
    return {
        "layer": None,
        "op": layer.kind,
        "shape": layer_keys(layer, batch),
        "option": option.name,
    }


def _place(entry: Mapping[str, Any]) -> object:
    return entry["op"], tuple(sorted(entry["shape"].items())), entry["option"]


def _conditions(device: str) -> dict[str, str]:
    if device == "cuda":
        return cuda_conditions()
    return {
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "int8 engine": str(torch.backends.quantized.engine),
        "int8 sums": int8_accumulation(),
    }


def _table(
    rows: list[dict[str, Any]],
    missing: Mapping[tuple[str, str], str],
    batch: int,
    conditions: dict[str, str],
    device: str,
) -> CostTable:
    return CostTable.checked(
        {
            "device": f"{device}: {conditions['processor']}",
            "description": "kernels of torch, each alone; spread between quartiles",
            "provenance": "measured on this machine by mpsearch hardware measure",
            "licence": "own",
            "origin": "measured",
            "units": {"latency": "us"},
            "batch": batch,
            "entries": rows,
            "unavailable": [
                {"op": op, "option": option, "reason": reason}
                for (op, option), reason in missing.items()
                # One odd layer without a kernel does not speak for all of its kind.
                if not any(row["op"] == op and row["option"] == option for row in rows)
            ],
            "conditions": conditions,
        },
        "the measured table",
    )
