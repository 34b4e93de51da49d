"""`mpsearch hardware measure` and `check`: cost tables of this machine, and whether they add up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mpsearch.cli import arguments as args
from mpsearch.cli.arguments import JsonOption
from mpsearch.cli.console import progress_bars, show
from mpsearch.cli.hardware_shown import plain_table, show_table, timings
from mpsearch.errors import InputError, UnknownNameError
from mpsearch.hardware.table import CostTable
from mpsearch.progress import OnProgress, with_time_left

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.models.named import NamedModel

__all__ = ["OutFile", "check_command", "measure_command", "measured_input"]

BACKENDS = ("onnxruntime", "torch")
SYNTHETIC = "synthetic"
FOR_ONE_INPUT = {"count": "1", "steps": "1"}

OutFile = Annotated[Path, typer.Option("--out", "-o", help="Where to write.", show_default=False)]
TimeLimit = Annotated[
    float,
    typer.Option(
        "--time-limit", help="Seconds of timing, after which ten rounds are enough.", min=0.0
    ),
]


def measured_input(data: str, model: NamedModel) -> Tensor:
    """Take a batch to time a model with.

    Kernels take as long whatever they multiply. Where data is to be made from the model, which is
    long work for a set to score on, one input is made, and hardly refined.

    Args:
        data: A data spec.
        model: The model.

    Returns:
        The first batch.
    """
    from mpsearch.models.registry import as_data

    head, _, query = data.partition("?")
    if head == SYNTHETIC:
        asked = [pair for pair in query.split("&") if pair]
        names = {pair.partition("=")[0] for pair in asked}
        asked += [f"{k}={v}" for k, v in FOR_ONE_INPUT.items() if k not in names]
        data = f"{head}?{'&'.join(asked)}"
    first: Tensor = next(as_data(data, model=model).batches())[0]
    return first


@contextmanager
def timed_bars() -> Iterator[OnProgress]:
    """Show a bar with the time that is left.

    Yields:
        The function to report progress to.
    """
    with progress_bars() as bars:
        yield with_time_left(bars)


def measure_command(
    model: args.ModelArgument,
    data: args.DataOption,
    out: OutFile,
    options: args.OptionsOption = "float,w8a8",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="onnxruntime: kernels inside the running model, with what lies between layers; "
            "torch: each layer's kernel alone.",
        ),
    ] = "onnxruntime",
    batch: Annotated[int, typer.Option("--batch", help="Inputs processed together.", min=1)] = 1,
    rounds: Annotated[
        int, typer.Option("--rounds", help="The most times that every kernel is run.", min=3)
    ] = 60,
    time_limit: TimeLimit = 150.0,
    threads: Annotated[int, typer.Option("--threads", help="Threads of a kernel.", min=1)] = 1,
    device_name: args.DeviceOption = "cpu",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the table that --out holds, or that was interrupted."
        ),
    ] = False,
) -> None:
    """Time the real kernels of a model's layers on this machine.

    mpsearch hardware measure digits-resnet -d digits --out cpu.json
    """
    from mpsearch.hardware.rounds import Rounds, rounds_file
    from mpsearch.models.registry import as_model

    for file in (out, rounds_file(out)) if not resume else ():
        if file.exists():
            raise InputError(f"{file} exists; add --resume to go on with it, or write elsewhere")
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    if backend == "onnxruntime" and device_name != "cpu":
        raise InputError(
            f"--device {device_name}: onnxruntime is measured on the cpu; add --backend torch"
        )
    known = CostTable.load(out) if out.exists() else None
    named = as_model(model)
    first = measured_input(data, named)
    menu = args.options_of(options)
    with timed_bars() as on_progress:
        if backend == "onnxruntime":
            from mpsearch.hardware.measure_runtime import measure_runtime

            table = measure_runtime(
                named.module,
                first,
                menu,
                batch=batch,
                rounds=Rounds(rounds=rounds, threads=threads, most_seconds=time_limit),
                known=known,
                save_to=out,
                resume=resume,
                on_progress=on_progress,
            )
        else:
            from mpsearch.hardware.measure import Timing, measure_kernels

            table = measure_kernels(
                named.module,
                first,
                menu,
                device=device_name,
                batch=batch,
                timing=Timing(rounds=rounds, threads=threads, most_seconds=time_limit),
                known=known,
                save_to=out,
                on_progress=on_progress,
            )
    show_table(table)
    show(timings(table))
    show(f"wrote {len(table.entries)} rows to {out}")


def check_command(
    model: args.ModelArgument,
    data: args.DataOption,
    table_file: Annotated[Path, typer.Option("--table", "-t", help="A table measured here.")],
    result: Annotated[
        list[Path],
        typer.Option("--result", help="Also run this saved allocation; may be repeated."),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    mixed: Annotated[int, typer.Option("--mixed", help="Random allocations to run.", min=0)] = 3,
    rounds: Annotated[int, typer.Option("--rounds", help="Runs of every model.", min=3)] = 60,
    time_limit: TimeLimit = 150.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the random allocations.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare summed latencies with whole models that are really run, and keep the error.

    Uniform and mixed allocations are run in ONNX Runtime. The largest error is written into the
    table and goes with every latency budget from then on.

    mpsearch hardware check digits-resnet -d digits --table cpu.json
    """
    from mpsearch.hardware.additivity import budget_met, check_additivity, drift
    from mpsearch.hardware.rounds import Rounds
    from mpsearch.models.registry import as_model
    from mpsearch.schemas import Allocation

    table = CostTable.load(table_file)
    named = as_model(model)
    first = measured_input(data, named)
    saved = {path.parent.name or path.stem: Allocation.load(path) for path in result}
    with timed_bars() as on_progress:
        found = check_additivity(
            named.module,
            first,
            table,
            name=named.name,
            further={label: answer.layers for label, answer in saved.items()},
            seed=seed,
            mixed=mixed,
            rounds=Rounds(
                rounds=rounds,
                threads=int(table.conditions.get("threads", "1")),
                most_seconds=time_limit,
            ),
            on_progress=on_progress,
        )
    pace = drift(found.checks, table.checks)
    others = [each for each in table.checks if each.model != named.name]
    table.model_copy(update={"checks": [*others, *found.checks]}).save(table_file)
    met = {
        each.allocation: budget_met(saved[each.allocation], each, table, pace)
        for each in found.checks
        if each.allocation in saved
    }
    if as_json:
        facts = [each.model_dump() | {"error": each.error} for each in found.checks]
        budgets = {label: asdict(each) for label, each in met.items() if each is not None}
        document = {"checks": facts, "worst": found.worst, "budgets": budgets}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    rows = plain_table("allocation", "summed", "whole model", "error")
    unit = table.units["latency"]
    for each in found.checks:
        rows.add_row(
            each.allocation,
            f"{each.predicted:.1f} {unit}",
            f"{each.measured:.1f} {unit}",
            f"{each.error:+.1%}",
        )
    show(rows)
    for label, compared in met.items():
        if compared is not None:
            show(f"{escape(label)}: {compared}")
    show(
        f"largest error {found.worst:.1%}, written to {table_file} as the tolerance of latency "
        f"budgets; the reference product takes {found.pace:.2f}x what it took then"
    )
    if found.unpriced:
        show(f"computed inside other kernels, or not measured: {', '.join(found.unpriced)}")
