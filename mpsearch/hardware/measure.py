"""Cost tables measured on this machine: every layer's real kernel, timed at every option."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.engine.quantizer import layer_module
from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Option
from mpsearch.hardware.cpu_kernels import Kernel, Unsupported, int8_accumulation, kernel_for
from mpsearch.hardware.shapes import shape_of
from mpsearch.hardware.table import CostTable
from mpsearch.menu import parse_options
from mpsearch.models.layers import Layer, evaluation_mode, find_layers, forward
from mpsearch.progress import OnProgress, Progress, ignore_progress

__all__ = ["Timing", "measure_cpu", "time_kernel"]

KEYS = {
    "conv2d": (
        "in_channels",
        "out_channels",
        "groups",
        "kernel_height",
        "kernel_width",
        "stride_height",
        "stride_width",
        "out_height",
        "out_width",
    ),
    "linear": ("in_features", "out_features", "rows"),
}


@dataclass(frozen=True)
class Timing:
    """How kernels are timed.

    Attributes:
        samples: Samples of a kernel; the median counts.
        sample_seconds: Shortest time of a sample; fast kernels run several times in one.
        warm_up: Runs that are not timed.
    """

    samples: int = 15
    sample_seconds: float = 0.002
    warm_up: int = 3


DEFAULT_TIMING = Timing()


def measure_cpu(
    model: nn.Module,
    inputs: Tensor,
    options: Sequence[str],
    *,
    batch: int = 1,
    timing: Timing = DEFAULT_TIMING,
    known: CostTable | None = None,
    save_to: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> CostTable:
    """Time the convolutions and linear layers of a model on this machine's CPU.

    Every shape is timed once, at as many threads as torch has. What enters a layer is what the
    model feeds it. A layer's bias and the rounding of its int8 output are part of the kernel;
    rounding its input is not, and nor is anything between layers.

    Args:
        model: The model; unchanged afterwards.
        inputs: A batch that it accepts; its first input is repeated.
        options: Names of options; those without a kernel are listed as unavailable.
        batch: Inputs processed together.
        timing: How to time.
        known: A table of this machine to go on with; what it holds is not timed again.
        save_to: Where to save the table after every shape, so that nothing is lost.
        on_progress: Called after every shape.

    Returns:
        The table, latency in microseconds, the spread being the distance of the quartiles.

    Raises:
        ModelError: The model has no layer that could be timed at any of the options.
        InputError: `known` was measured on another machine or under other conditions.
    """
    menu = parse_options(options)
    conditions = _conditions()
    if known is not None and (known.conditions, known.batch) != (conditions, batch):
        raise InputError(
            f"the table to go on with was measured with {known.conditions} and batch "
            f"{known.batch}, this is {conditions} and batch {batch}; write to another file"
        )
    first = inputs[:1].expand(batch, *inputs.shape[1:]).clone()
    layers = [x for x in find_layers(model, (first[:1], None)).layers if x.kind in KEYS]
    entered = _entered(model, first, [layer.name for layer in layers])
    rows = {_place(entry): entry for entry in (known.model_dump()["entries"] if known else ())}
    missing = {(m.op or "", m.option): m.reason for m in (known.unavailable if known else ())}
    unique = {tuple(_shape(layer, batch).items()): layer for layer in layers}
    for done, layer in enumerate(unique.values(), start=1):
        module = layer_module(model, layer.name)
        for option in menu:
            entry = _entry(layer, batch, option)
            if _place(entry) in rows:
                continue
            kernel = kernel_for(module, entered[layer.name], option)
            if isinstance(kernel, Unsupported):
                missing[layer.kind, option.name] = kernel.reason
                continue
            middle, spread = time_kernel(kernel, timing)
            rows[_place(entry)] = entry | {
                "values": {"latency": middle * 1e6},
                "spread": {"latency": spread * 1e6},
            }
        if rows:
            table = _table(list(rows.values()), missing, batch, conditions)
            if save_to is not None:
                table.save(save_to)
        on_progress(Progress("measure", done, len(unique), layer.name))
    if not rows:
        raise ModelError(
            f"no layer of {type(model).__name__} can be timed at {', '.join(options)}: "
            + "; ".join(sorted(set(missing.values())) or ["it has no Conv2d or Linear"])
        )
    return table


def time_kernel(kernel: Kernel, timing: Timing = DEFAULT_TIMING) -> tuple[float, float]:
    """Time a kernel.

    Args:
        kernel: Runs once when called.
        timing: How to time.

    Returns:
        Median seconds of a run, and the distance between the quartiles.
    """
    with torch.inference_mode():
        for _ in range(timing.warm_up):
            kernel()
        started = time.perf_counter()
        kernel()
        once = time.perf_counter() - started
        runs = max(1, round(timing.sample_seconds / max(once, 1e-7)))
        samples = []
        for _ in range(timing.samples):
            started = time.perf_counter()
            for _ in range(runs):
                kernel()
            samples.append((time.perf_counter() - started) / runs)
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return middle, high - low


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


def _shape(layer: Layer, batch: int) -> dict[str, int]:
    shape = shape_of(layer, batch)
    return {key: shape[key] for key in KEYS[layer.kind]}


def _entry(layer: Layer, batch: int, option: Option) -> dict[str, Any]:
    return {
        "layer": None,
        "op": layer.kind,
        "shape": _shape(layer, batch),
        "option": option.name,
    }


def _place(entry: Mapping[str, Any]) -> object:
    return entry["op"], tuple(sorted(entry["shape"].items())), entry["option"]


def _conditions() -> dict[str, str]:
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "int8 engine": str(torch.backends.quantized.engine),
        "int8 sums": int8_accumulation(),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _table(
    rows: list[dict[str, Any]],
    missing: Mapping[tuple[str, str], str],
    batch: int,
    conditions: dict[str, str],
) -> CostTable:
    return CostTable.checked(
        {
            "device": f"cpu: {conditions['processor']}",
            "description": "kernels of torch, each alone; medians, spread between quartiles",
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
