"""`mpsearch hardware`: which devices there are, and cost tables of one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli.arguments import JsonOption
from mpsearch.cli.console import print_document, show
from mpsearch.cli.hardware_measure import OutFile, check_command, measure_command
from mpsearch.cli.hardware_shown import plain_table, show_device, show_table
from mpsearch.errors import InputError
from mpsearch.hardware.csv_tables import ColumnMapping, import_csv
from mpsearch.hardware.device import Device, device, known_devices
from mpsearch.hardware.importers import IMPORTERS, import_published
from mpsearch.hardware.lookup import as_hardware

__all__ = ["hardware_app"]

hardware_app = typer.Typer(
    help="List the devices, or check, show and import cost tables.", no_args_is_help=False
)

hardware_app.command("measure")(measure_command)
hardware_app.command("check")(check_command)


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
    table = plain_table("device", "prices", "arithmetic", "what it is")
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
        show_device(found)
    else:
        show_table(found)


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


def _pairs(texts: list[str], option: str, form: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not (separator and name and value):
            raise InputError(f"{option} {text!r}: write {form}")
        pairs.append((name, value))
    return pairs
