"""Cost tables of ONNX Runtime on this machine: every kernel timed inside a running model.

The model is run at every arithmetic that the options need, all layers alike, and twice with
neighbours unlike, which shows what conversions cost. Kernels are read from the runtime's own
profiler; what profiling adds is taken out by scaling each graph's kernels to its own unprofiled
time. All graphs run in turn, round after round, so that a slow spell of the machine meets each of
them. With one thread the clock of whole graphs is the thread's processor time, which waiting for a
core does not lengthen.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Option
from mpsearch.hardware.device import arithmetic_of
from mpsearch.hardware.graph_prices import TO_FLOAT, TO_INT8, is_narrow
from mpsearch.hardware.machine import processor
from mpsearch.hardware.mixed_graph import mixed_graph
from mpsearch.hardware.onnx_graph import RuntimeGraph, onnx_modules, runtime_graph
from mpsearch.hardware.round_times import RoundsTaken, Seconds
from mpsearch.hardware.rounds import Rounds, rounds_file, run_rounds
from mpsearch.hardware.runtime_session import WIDENING, least_disturbed
from mpsearch.hardware.shapes import layer_keys
from mpsearch.hardware.table import CostTable
from mpsearch.menu import parse_options
from mpsearch.models.layer import Layer
from mpsearch.models.layers import find_layers
from mpsearch.progress import OnProgress, ignore_progress

__all__ = ["measure_runtime"]


@dataclass(frozen=True)
class _Measured:
    """What the runs of one graph showed, in seconds."""

    work: Mapping[int, float]
    spread: Mapping[int, float]
    between: Mapping[int, float]


DEFAULT_ROUNDS = Rounds()


def measure_runtime(
    model: nn.Module,
    inputs: Tensor,
    options: Sequence[str],
    *,
    batch: int = 1,
    rounds: Rounds = DEFAULT_ROUNDS,
    known: CostTable | None = None,
    save_to: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> CostTable:
    """Time a model's kernels in ONNX Runtime, and what lies between its layers.

    Args:
        model: The model; unchanged afterwards.
        inputs: A batch that it accepts; its first input is repeated.
        options: Names of options; those without a kernel are listed as unavailable.
        batch: Inputs processed together.
        rounds: How long to run.
        known: A table of this machine to go on with; its rows are kept where no new one is made.
        save_to: Where to save the table; unfinished rounds are kept beside it.
        resume: Go on with the rounds that are kept there, where an earlier run was interrupted.
        on_progress: Called after every round.

    Returns:
        The table, latency in microseconds, by shape: layers, operations without weights, and
        conversions.

    Raises:
        ModelError: None of the options has kernels.
        InputError: `known`, or the rounds kept, are of another machine, model or other conditions.
    """
    menu = parse_options(options)
    conditions = runtime_conditions(rounds.threads)
    if known is not None and (known.conditions, known.batch) != (conditions, batch):
        raise InputError(
            f"the table to go on with was measured with {known.conditions} and batch "
            f"{known.batch}, this is {conditions} and batch {batch}; write to another file"
        )
    by_width = {narrow: [o for o in menu if _width(o) is narrow] for narrow in (False, True)}
    lacking = {o.name: _reason(o) for o in menu if _width(o) is None}
    if not any(by_width.values()):
        raise ModelError(f"no option can be timed: {'; '.join(lacking.values())}")
    first = inputs[:1].expand(batch, *inputs.shape[1:]).clone()
    graph = runtime_graph(model, first)
    layers = {layer.name: layer for layer in find_layers(model, (first[:1], None)).layers}
    allocations = _allocations(graph, [width for width, found in by_width.items() if found])
    keep = None if save_to is None else rounds_file(save_to)
    taken = run_rounds(
        {name: mixed_graph(graph, narrow) for name, narrow in allocations.items()},
        graph.example,
        rounds,
        conditions,
        keep=keep,
        resume=resume,
        on_progress=on_progress,
    )
    measured = {name: _summary(seconds) for name, seconds in taken.graphs.items()}
    rows = list(_rows(graph, layers, allocations, measured, by_width, batch))
    table = _table(rows, lacking, known, batch, conditions, taken)
    if save_to is not None:
        table.save(save_to)
    if keep is not None:
        keep.unlink(missing_ok=True)
    return table


def runtime_conditions(threads: int) -> dict[str, str]:
    """Describe what a measurement with ONNX Runtime depends on.

    Args:
        threads: Threads of a kernel.

    Returns:
        Condition -> value.
    """
    _, runtime = onnx_modules()
    return {
        "processor": processor(),
        "threads": str(threads),
        "runtime": f"onnxruntime {runtime.__version__}, CPU, without {WIDENING}",
        "clock": "processor time of the thread" if threads == 1 else "wall time",
    }


def _width(option: Option) -> bool | None:
    """Tell whether an option is float (False), int8 (True), or has no kernel here."""
    if option.is_float:
        return False
    return True if is_narrow(option) else None


def _reason(option: Option) -> str:
    pair = arithmetic_of(option.weight), arithmetic_of(option.activation)
    return (
        f"ONNX Runtime's CPU provider is measured at float and w8a8; it has no kernel here for "
        f"{pair[0]} weights with {pair[1]} activations"
    )


def _allocations(graph: RuntimeGraph, widths: Sequence[bool]) -> dict[str, list[str]]:
    """Name the graphs to run, by the layers that are int8 in each."""
    uniform = {False: [], True: graph.layers}
    found = {("int8" if width else "float"): list(uniform[width]) for width in widths}
    if len(widths) == 2:
        found |= {"even": graph.layers[::2], "odd": graph.layers[1::2]}
    return found


def _summary(seconds: Seconds) -> _Measured:
    work, between = seconds.undisturbed()
    spread: dict[int, float] = {}
    if len(seconds.whole) > 1:
        (early, _), (late, _) = (half.undisturbed() for half in seconds.halves())
        spread = {number: abs(early[number] - late[number]) for number in work}
    return _Measured(work, spread, between)


def _rows(
    graph: RuntimeGraph,
    layers: Mapping[str, Layer],
    allocations: Mapping[str, Sequence[str]],
    measured: Mapping[str, _Measured],
    options: Mapping[bool, Sequence[Option]],
    batch: int,
) -> Iterable[dict[str, Any]]:
    """Yield rows of the table: alike shapes once, with the mean of what they took."""
    gathered: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for name, width in (("float", False), ("int8", True)):
        if name not in measured:
            continue
        for operation in graph.operations:
            seconds = measured[name].work.get(operation.number, 0.0)
            if not conversions_of(graph, allocations[name], operation.number):
                # A change of layout without one of arithmetic belongs to what comes before it.
                seconds += measured[name].between.get(operation.number, 0.0)
            shape = {"values": operation.size.values}
            if operation.layer is not None:
                shape = layer_keys(layers[operation.layer], batch)
            spread = measured[name].spread.get(operation.number, 0.0)
            if seconds > 0:
                key = (operation.kind, tuple(shape.items()), width)
                gathered[key].append((seconds, spread))
    for (kind, size), seconds_each in _conversions(graph, allocations, measured).items():
        gathered[kind, (("values", size),), True] = [(s, 0.0) for s in seconds_each]
    for (kind, shape_items, width), times in gathered.items():
        for option in options[width]:
            yield {
                "op": kind,
                "shape": dict(shape_items),
                "option": option.name,
                "values": {"latency": statistics.fmean(t for t, _ in times) * 1e6},
                "spread": {"latency": statistics.median(s for _, s in times) * 1e6},
            }


def conversions_of(graph: RuntimeGraph, narrow: Sequence[str], number: int) -> int:
    """Count the readers of a tensor that compute in another arithmetic than its maker.

    Args:
        graph: The graph.
        narrow: Layers that are int8.
        number: The operation that makes the tensor; -1 for the model's input.

    Returns:
        The number of edges that convert, the model's float output among them.
    """
    made = graph.owner_of(number) in narrow
    readers = [op.owner in narrow for op in graph.operations if number in op.inputs]
    if graph.operations and number == graph.operations[-1].number:
        readers.append(False)
    return sum(reader != made for reader in readers)


def _conversions(
    graph: RuntimeGraph,
    allocations: Mapping[str, Sequence[str]],
    measured: Mapping[str, _Measured],
) -> dict[tuple[str, int], list[float]]:
    """Gather what one converting edge took, by direction and size of the tensor."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for name, seen in measured.items():
        narrow = allocations[name]
        for number in (-1, *(op.number for op in graph.operations)):
            edges = conversions_of(graph, narrow, number)
            seconds = seen.between.get(number, 0.0)
            if edges and seconds > 0:
                kind = TO_FLOAT if graph.owner_of(number) in narrow else TO_INT8
                found[kind, graph.facts_of(number).values].append(seconds / edges)
    return found


def _table(
    rows: list[dict[str, Any]],
    lacking: Mapping[str, str],
    known: CostTable | None,
    batch: int,
    conditions: dict[str, str],
    taken: RoundsTaken,
) -> CostTable:
    new = {_place(row) for row in rows}
    kept = [] if known is None else [e.model_dump(exclude={"layer"}) for e in known.entries]
    rows = [*(row for row in kept if _place(row) not in new), *rows]
    return CostTable.checked(
        {
            "device": f"cpu: {conditions['processor']}, ONNX Runtime",
            "description": "kernels of ONNX Runtime inside the running model; spread between "
            f"halves of {taken.rounds} rounds, which differ by {taken.unsettled:.1%}",
            "provenance": "measured on this machine by mpsearch hardware measure",
            "licence": "own",
            "origin": "measured",
            "units": {"latency": "us"},
            "batch": batch,
            "entries": rows,
            "unavailable": [{"option": o, "reason": reason} for o, reason in lacking.items()],
            "conditions": conditions,
            "reference_seconds": least_disturbed(taken.pace),
        },
        "the measured table",
    )


def _place(row: Mapping[str, Any]) -> object:
    return row["op"], tuple(sorted(row["shape"].items())), row["option"]
