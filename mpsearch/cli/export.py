"""`mpsearch export`: an allocation in the language of the tool that will run it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from mpsearch.cli import arguments as args
from mpsearch.cli.console import show
from mpsearch.errors import InputError
from mpsearch.export import Exported, Target, export, find_target, known_targets
from mpsearch.formats import parse_option
from mpsearch.schemas import Allocation

__all__ = ["export_command", "menu_for_target"]


def export_command(
    result: Annotated[
        Path | None,
        typer.Argument(
            help="Saved allocation, or the folder that a search wrote.", metavar="RESULT"
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Target; see: mpsearch export --list")
    ] = None,
    out: args.OutOption = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=args.MODEL_HELP, show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help=args.DATA_HELP, show_default=False)
    ] = None,
    trusted: args.TrustedOption = False,
    list_targets: Annotated[
        bool, typer.Option("--list", help="List the targets, and what each can express.")
    ] = False,
    as_json: args.JsonOption = False,
) -> None:
    """Write an allocation for the tool that will run it.

    mpsearch export out --to torchao --out torchao.json

    mpsearch export out --to onnxruntime --out model.onnx --model digits-resnet --data digits
    """
    if list_targets:
        _list(as_json=as_json)
        return
    if result is None or to is None or out is None:
        raise InputError(
            "give RESULT, --to TARGET and --out FILE; mpsearch export --list shows the targets"
        )
    target = find_target(to)
    allocation = Allocation.load(result / "allocation.json" if result.is_dir() else result)
    if (model is None) != (data is None):
        raise InputError("--model and --data go together: give both or neither")
    loaded: dict[str, Any] = {}
    if model is not None and data is not None:
        from mpsearch.cli.loading import load

        found = load(model, data, trusted=trusted)
        loaded = {"model": found.model, "data": found.data}
    written = export(allocation, target.name, out, **loaded)
    _report(written, as_json=as_json)


def menu_for_target(
    name: str, options: list[str], *, given: bool = True
) -> tuple[list[str], list[str]]:
    """Leave out of a menu what a target cannot express.

    Args:
        name: Name of the target.
        options: Names of the options.
        given: Whether somebody asked for these options; of a default menu that the target can
            express nothing of, what it offers itself takes the place.

    Returns:
        The options that it can express, and those that it cannot.

    Raises:
        InputError: It can express none of them; the message names the nearest.
    """
    target = find_target(name)
    kept = [each for each in options if target.expresses(parse_option(each))]
    if not kept and not given:
        return [each for each in target.offers if each != "float"], options
    if not kept:
        near = dict.fromkeys(n for each in options for n in target.nearest(parse_option(each)))
        raise InputError(
            f"{target.name} can express none of {', '.join(options)}; nearest: {', '.join(near)}"
        )
    return kept, [each for each in options if each not in kept]


def _report(written: Exported, *, as_json: bool) -> None:
    if as_json:
        document = {
            "target": written.target,
            "path": str(written.path),
            "files": list(written.files),
            "notes": list(written.notes),
            "sizes": dict(written.sizes),
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    inside = f" ({', '.join(written.files)})" if written.files != (written.path.name,) else ""
    show(f"wrote {written.path}{inside}")
    if written.sizes:
        show(", ".join(f"{part} {size:,} B" for part, size in written.sizes.items()))
    for note in written.notes:
        show(f"note: {note}")


def _list(*, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([_entry(each) for each in known_targets()], indent=1) + "\n")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("target", "writes", "needs", "can express, among others", "cannot"):
        table.add_column(column, overflow="fold")
    for target in known_targets():
        name = target.name + ("\n(--model, --data)" if target.needs_model else "")
        table.add_row(
            name,
            f"{target.title}: {target.writes}",
            ", ".join(target.needs) or "nothing",
            ", ".join(target.offers) if target.pairs else "every option",
            "; ".join(target.cannot) or "nothing",
        )
    show(table)
    show("all formats, granularities and kinds of layers: mpsearch export --list --json")


def _pairs(target: Target) -> list[str]:
    if target.pairs is None:
        return ["every option"]
    return [
        f"weights: {pair.weights.summary()} / inputs: {pair.activations.summary()}"
        for pair in target.pairs
    ]


def _entry(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "title": target.title,
        "writes": target.writes,
        "needs": list(target.needs),
        "needs_model": target.needs_model,
        "folder": target.folder,
        "media_type": target.media_type,
        "expresses": _pairs(target),
        "offers": list(target.offers),
        "kinds": None if target.kinds is None else sorted(target.kinds),
        "fused": [list(each) for each in target.fused],
        "cannot": list(target.cannot),
        "notes": list(target.notes),
    }
