"""`mpsearch hardware`: which devices there are, and cost tables of one's own."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from mpsearch.cli import arguments as args
from mpsearch.cli.arguments import JsonOption
from mpsearch.cli.console import print_document, progress_bars, show
from mpsearch.errors import InputError, UnknownNameError
from mpsearch.hardware.csv_tables import ColumnMapping, import_csv
from mpsearch.hardware.device import Device, device, known_devices
from mpsearch.hardware.importers import IMPORTERS, import_published
from mpsearch.hardware.lookup import as_hardware
from mpsearch.hardware.table import CostTable

__all__ = ["hardware_app"]

BACKENDS = ("onnxruntime", "torch")

hardware_app = typer.Typer(
    help="List the devices, or check, show and import cost tables.", no_args_is_help=False
)

OutFile = Annotated[Path, typer.Option("--out", "-o", help="Where to write.", show_default=False)]


@hardware_app.callback(invoke_without_command=True)
def hardware_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the devices that are shipped: what they price and which arithmetic they have."""
    if context.invoked_subcommand is None:
        list_command(as_json)


@hardware_app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List the devices that are shipped: what they price and which arithmetic they have."""
    devices = [device(name) for name in known_devices()]
    if as_json:
        facts = [
            {
                "name": each.name,
                "summary": each.summary,
                "resources": each.resources,
                "arithmetic": list(each.peaks),
            }
            for each in devices
        ]
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return
    table = _plain("device", "prices", "arithmetic", "what it is")
    for each in devices:
        table.add_row(each.name, ", ".join(each.resources), ", ".join(each.peaks), each.summary)
    show(table)
    show("Modelled from public figures: mpsearch hardware show NAME cites every one of them.")


@hardware_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="Name of a device, or a device or cost table file.")],
    as_json: JsonOption = False,
) -> None:
    """Explain a device or a cost table: figures, units, where they come from.

    mpsearch hardware show nvidia-t4
    """
    found = as_hardware(name)
    if as_json:
        print_document(found)
    elif isinstance(found, Device):
        _show_device(found)
    else:
        _show_table(found)


@hardware_app.command("validate")
def validate_command(
    files: Annotated[list[Path], typer.Argument(help="Device or cost table files.")],
) -> None:
    """Check that files are devices or cost tables; say what is wrong, and where.

    mpsearch hardware validate table.json
    """
    for file in files:
        if not file.exists():
            raise InputError(f"no file {file}")
        found = as_hardware(file)
        if isinstance(found, Device):
            show(f"{file}: device {found.name}, prices {', '.join(found.resources)}")
            continue
        show(
            f"{file}: cost table of {found.device}, {len(found.entries)} rows, "
            f"{len(found.options)} options, prices {', '.join(found.resources)}"
        )


@hardware_app.command("import-csv")
def import_csv_command(
    file: Annotated[Path, typer.Argument(help="The CSV file.")],
    out: OutFile,
    device_name: Annotated[str, typer.Option("--device", help="Name of the device.")],
    option: Annotated[
        str, typer.Option("--option", help="The option of a row: w{w_bits}a{a_bits}, or {column}.")
    ],
    value: Annotated[
        list[str],
        typer.Option("--value", help="RESOURCE=COLUMN:UNIT, may be repeated: latency=time_us:us."),
    ],
    provenance: Annotated[str, typer.Option("--provenance", help="Where the figures are from.")],
    licence: Annotated[str, typer.Option("--licence", help="Their licence; `own` if yours.")],
    layer: Annotated[
        str, typer.Option("--layer", help="The layer's name in a row: {column}.")
    ] = "",
    op: Annotated[
        str, typer.Option("--op", help="Kind of layer, for tables by shape: conv2d, {column}.")
    ] = "",
    shape: Annotated[
        list[str],
        typer.Option("--shape", help="KEY=COLUMN, may be repeated: in_channels=cin."),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    batch: Annotated[int, typer.Option("--batch", help="Inputs processed together.", min=1)] = 1,
) -> None:
    """Make a cost table from somebody's CSV file.

    mpsearch hardware import-csv t.csv --device npu --layer '{name}' --option 'w{wb}a{ab}' --value
    latency=us:us --provenance 'my bench' --licence own --out table.json
    """
    values = {}
    for name, text in _pairs(value, "--value", "RESOURCE=COLUMN:UNIT"):
        column, separator, unit = text.rpartition(":")
        if not separator or not column or not unit:
            raise InputError(f"--value {name}={text!r}: write RESOURCE=COLUMN:UNIT")
        values[name] = (column, unit)
    mapping = ColumnMapping(
        option=option,
        values=values,
        layer=layer,
        op=op,
        shape=dict(_pairs(shape, "--shape", "KEY=COLUMN")),
    )
    table = import_csv(
        file, mapping, device=device_name, provenance=provenance, licence=licence, batch=batch
    )
    show(f"wrote {len(table.entries)} rows to {table.save(out)}")


@hardware_app.command("import")
def import_command(
    layout: Annotated[str, typer.Argument(help=f"Layout of the file: {', '.join(IMPORTERS)}.")],
    file: Annotated[Path, typer.Argument(help="A published table or model.")],
    out: OutFile,
) -> None:
    """Make a cost table or a device from a published file.

    mpsearch hardware import hawq-ilp resnet18_ilp_inputs.json --out table.json
    """
    found = import_published(layout, file)
    what = f"device {found.name}" if isinstance(found, Device) else f"{len(found.entries)} rows"
    show(f"wrote {what} to {found.save(out)}")


@hardware_app.command("measure")
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
        int, typer.Option("--rounds", help="Times that every kernel is run.", min=3)
    ] = 60,
    threads: Annotated[int, typer.Option("--threads", help="Threads of a kernel.", min=1)] = 1,
    device_name: args.DeviceOption = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the table that --out holds already.")
    ] = False,
) -> None:
    """Time the real kernels of a model's layers on this machine.

    mpsearch hardware measure digits-resnet -d digits --out cpu.json
    """
    if out.exists() and not resume:
        raise InputError(f"{out} exists; add --resume to go on with it, or write elsewhere")
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    from mpsearch.models.registry import as_data, as_model

    known = CostTable.load(out) if out.exists() else None
    named = as_model(model)
    first = next(as_data(data, model=named).batches())[0]
    menu = args.options_of(options)
    with progress_bars() as on_progress:
        if backend == "onnxruntime":
            if device_name != "cpu":
                raise InputError(
                    f"--device {device_name}: onnxruntime is measured on the cpu; add "
                    "--backend torch"
                )
            from mpsearch.hardware.measure_runtime import Rounds, measure_runtime

            table = measure_runtime(
                named.module,
                first,
                menu,
                batch=batch,
                rounds=Rounds(rounds=rounds, threads=threads),
                known=known,
                save_to=out,
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
                timing=Timing(rounds=rounds, threads=threads),
                known=known,
                save_to=out,
                on_progress=on_progress,
            )
    _show_table(table)
    show(_timings(table))
    show(f"wrote {len(table.entries)} rows to {out}")


@hardware_app.command("check")
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
    seed: Annotated[int, typer.Option("--seed", help="Of the random allocations.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare summed latencies with whole models that are really run, and keep the error.

    Uniform and mixed allocations are run in ONNX Runtime. The largest error is written into the
    table and goes with every latency budget from then on.

    mpsearch hardware check digits-resnet -d digits --table cpu.json
    """
    from mpsearch.hardware.additivity import budget_met, check_additivity
    from mpsearch.hardware.measure_runtime import Rounds
    from mpsearch.models.registry import as_data, as_model
    from mpsearch.schemas import Allocation

    table = CostTable.load(table_file)
    named = as_model(model)
    first = next(as_data(data, model=named).batches())[0]
    saved = {path.parent.name or path.stem: Allocation.load(path) for path in result}
    with progress_bars() as on_progress:
        found = check_additivity(
            named.module,
            first,
            table,
            name=named.name,
            further={label: answer.layers for label, answer in saved.items()},
            seed=seed,
            mixed=mixed,
            rounds=Rounds(rounds=rounds, threads=int(table.conditions.get("threads", "1"))),
            on_progress=on_progress,
        )
    others = [each for each in table.checks if each.model != named.name]
    table.model_copy(update={"checks": [*others, *found.checks]}).save(table_file)
    met = {
        each.allocation: budget_met(saved[each.allocation], each, table)
        for each in found.checks
        if each.allocation in saved
    }
    if as_json:
        facts = [each.model_dump() | {"error": each.error} for each in found.checks]
        budgets = {label: asdict(each) for label, each in met.items() if each is not None}
        document = {"checks": facts, "worst": found.worst, "budgets": budgets}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    rows = _plain("allocation", "summed", "whole model", "error")
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


def _timings(found: CostTable) -> Table:
    table = _plain("option", "sum of layer shapes", "median spread", "slower than float at")
    plain = {
        entry.place.rsplit(" ", 1)[0]: entry for entry in found.entries if entry.option == "float"
    }
    for option in found.options:
        rows = [
            entry
            for entry in found.entries
            # What lies between layers is not the option's own cost.
            if entry.option == option and set(entry.shape) != {"values"}
        ]
        spread = statistics.median(e.spread["latency"] / e.values["latency"] for e in rows)
        slower = [
            entry
            for entry in rows
            if (other := plain.get(entry.place.rsplit(" ", 1)[0]))
            and entry.values["latency"] > other.values["latency"]
        ]
        total = sum(entry.values["latency"] for entry in rows)
        table.add_row(option, f"{total:.1f} µs", f"{spread:.0%}", f"{len(slower)} of {len(rows)}")
    return table


def _pairs(texts: list[str], option: str, form: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not (separator and name and value):
            raise InputError(f"{option} {text!r}: write {form}")
        pairs.append((name, value))
    return pairs


def _show_device(found: Device) -> None:
    show(f"[bold]{found.name}[/]  {escape(found.summary)}")
    table = _plain("figure", "value", "source", "confirmed")

    def add(name: str, value: str, source: str, confirmed: str | None) -> None:
        table.add_row(name, value, escape(source), escape(confirmed or "no"))

    for name, peak in found.peaks.items():
        add(f"peak {name}", f"{peak.value:.4g} operations/s", peak.source, peak.confirmed)
    for name, figure, unit in (
        ("bandwidth", found.bandwidth, "B/s"),
        ("overhead", found.overhead, "s"),
        ("power", found.power, "W"),
    ):
        if figure is not None:
            add(name, f"{figure.value:.4g} {unit}", figure.source, figure.confirmed)
    for widening in found.widenings:
        what = f"{', '.join(widening.narrow)} {widening.operand} run at {widening.wide}"
        add("widening", what, widening.source, widening.confirmed)
    if found.energies is not None:
        per_bit = f"{found.energies.memory_per_bit:g} pJ per bit of traffic"
        add("energies", per_bit, found.energies.source, found.energies.confirmed)
    if found.luts is not None:
        fold = f"P = {found.luts.processing_elements}, Q = {found.luts.lanes}"
        add("LUT model", fold, found.luts.source, found.luts.confirmed)
    show(table)
    if found.unconfirmed:
        show(f"not confirmed, for the source could not be opened: {', '.join(found.unconfirmed)}")
    for note in found.notes:
        show(f"note: {escape(note)}")


def _show_table(found: CostTable) -> None:
    show(f"[bold]{escape(found.device)}[/]  {escape(found.description)}")
    units = ", ".join(f"{resource} in {unit}" for resource, unit in found.units.items())
    shown = found.options[:12]
    more = f" … ({len(found.options)} in all)" if len(found.options) > len(shown) else ""
    by_layer = len({entry.layer for entry in found.entries if entry.layer})
    table = Table(box=None, show_header=False)
    for label, text in (
        ("prices", f"{units}; {found.origin}, batch of {found.batch}"),
        ("rows", f"{len(found.entries)}: {by_layer} layers by name, shapes of {found.ops or '–'}"),
        ("options", ", ".join(shown) + more),
        ("missing", "; ".join(f"{m.option}: {m.reason}" for m in found.unavailable) or "–"),
        ("from", found.provenance),
        ("licence", found.licence),
        ("tolerance", ", ".join(f"{k} {v:.1%}" for k, v in found.tolerance.items()) or "unchecked"),
        *found.conditions.items(),
    ):
        table.add_row(f"[bold]{label}[/]", escape(text))
    show(table)


def _plain(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
