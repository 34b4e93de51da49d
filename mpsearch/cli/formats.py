"""`mpsearch formats`: which numeric formats there are, and what one of them can represent."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mpsearch.cli.arguments import JsonOption
from mpsearch.cli.console import show
from mpsearch.formats import OPTION_GRAMMAR, Format, families, get

__all__ = ["formats_app"]

SHAPES = ((64, 27), (256, 1024), (4096, 4096))
"""Weight shapes whose effective bits are shown: a first convolution, a layer, a large layer."""

LISTED_SHAPE = (256, 1024)

PLOT_WIDTH = 65
LEAST_PLOT_WIDTH = 21
BARS = " ▁▂▃▄▅▆▇█"

formats_app = typer.Typer(
    help="List the numeric formats, or explain one of them.", no_args_is_help=False
)


@formats_app.callback(invoke_without_command=True)
def formats_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the numeric formats: how they are written, what they store, where they are from."""
    if context.invoked_subcommand is not None:
        return
    if as_json:
        _write([_entry(name, family.label) for family in families() for name in family.examples])
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("format")
    table.add_column("bits", justify="right")
    table.add_column("effective")
    table.add_column("what it is", overflow="fold")
    for family in families():
        table.add_section()
        table.add_row(f"[bold]{family.label}[/]", "", "", f"[dim]{escape(family.grammar)}[/]")
        for name in family.examples:
            spec = get(name)
            effective = f"{spec.effective_bits(LISTED_SHAPE):.4g}"
            table.add_row(name, f"{spec.bits:g}", effective, spec.summary)
    shape = " × ".join(map(str, LISTED_SHAPE))
    show(
        Group(
            table,
            f"effective: bits per value of a {shape} weight, scales and zero points counted",
            f"options: {escape(OPTION_GRAMMAR)}",
            "mpsearch formats show NAME explains one of them, listed here or not",
        )
    )


@formats_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="Name of a format, for example mxfp4 or e3m4_g64.")],
    as_json: JsonOption = False,
) -> None:
    """Explain one format: values, range, effective bits, source, and a plot of its values."""
    spec = get(name)
    grid = spec.value_grid()
    if as_json:
        facts = _entry(spec.name, "") | _grid_facts(spec)
        del facts["family"]
        effective = [
            {"shape": list(shape), "effective_bits": spec.effective_bits(shape)} for shape in SHAPES
        ]
        _write(facts | {"effective_bits_by_shape": effective, "values": grid})
        return
    table = Table(box=None, show_header=False)
    for label, value in _rows(spec, grid):
        table.add_row(f"[bold]{label}[/]", escape(value))
    show(table)
    if grid is not None:
        show(_Plot(grid))


def _entry(name: str, family: str) -> dict[str, Any]:
    spec = get(name)
    return {
        "name": spec.name,
        "family": family,
        "bits": spec.bits,
        "effective_bits": spec.effective_bits(LISTED_SHAPE),
        "block": spec.block,
        "scale_bits": spec.scale_bits,
        "use": spec.role,
        "summary": spec.summary,
        "source": spec.source,
    }


def _grid_facts(spec: Format) -> dict[str, float | int | None]:
    grid, extremes = spec.value_grid(), spec.extremes()
    positives = [value for value in grid or () if value > 0]
    return {
        "count": None if grid is None else len(grid),
        "low": None if extremes is None else extremes[0],
        "high": None if extremes is None else extremes[1],
        "smallest_positive": min(positives, default=None),
    }


def _rows(spec: Format, grid: Sequence[float] | None) -> list[tuple[str, str]]:
    use = {
        "any": "weights and activations",
        "weights": "weights only",
        "scales": "scales of other formats only",
    }[spec.role]
    rows = [
        ("format", spec.name),
        ("what", spec.summary),
        ("for", use),
        ("bits", f"{spec.bits:g} per value"),
    ]
    for shape in SHAPES:
        effective = f"{spec.effective_bits(shape):.5g} with scales, {shape[0]} × {shape[1]} weight"
        rows.append(("", effective))
    facts = _grid_facts(spec)
    if facts["low"] is not None:
        least = f", smallest positive {facts['smallest_positive']:.9g}" if grid else ""
        rows.append(("range", f"{facts['low']:.9g} … {facts['high']:.9g}{least}"))
    if grid is not None:
        rows.append(("values", f"{len(grid)}: {_abridged(grid)}"))
    elif facts["low"] is not None:
        rows.append(("values", "too many to list"))
    else:
        rows.append(("values", "any" if spec.is_float else "learned from the tensor"))
    rows.append(("source", spec.source))
    return rows


def _abridged(grid: Sequence[float]) -> str:
    if len(grid) <= 33:
        return "  ".join(f"{value:.9g}" for value in grid)
    middle = len(grid) // 2
    parts = (grid[:4], grid[middle - 4 : middle + 5], grid[-4:])
    return "  …  ".join("  ".join(f"{value:.9g}" for value in part) for part in parts)


class _Plot:
    """A plot as wide as the terminal allows."""

    def __init__(self, grid: Sequence[float]) -> None:
        self._grid = grid

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        width = max(LEAST_PLOT_WIDTH, min(PLOT_WIDTH, options.max_width))
        yield _drawn(self._grid, width - 1 + width % 2)  # odd, so that zero has its column


def _drawn(grid: Sequence[float], width: int) -> Text:
    """Draw how many values lie where on a linear axis; heights are logarithms of counts."""
    low, high = grid[0], grid[-1]
    last = width - 1
    columns = Counter(round((value - low) / (high - low) * last) for value in grid)
    fullest = max(columns.values())
    unit = (len(BARS) - 2) / math.log2(fullest) if fullest > 1 else 0.0
    bars = "".join(
        BARS[1 + round(unit * math.log2(columns[index]))] if columns[index] else BARS[0]
        for index in range(width)
    )
    ends = f"{low:g}", f"{high:g}"
    middle = f"{(low + high) / 2:g}".center(width - len(ends[0]) - len(ends[1]))
    most = f"tallest column: {fullest} value" + ("s, heights are logarithmic" * (fullest > 1))
    return Text(f"\n{bars}\n{'─' * width}\n{ends[0]}{middle}{ends[1]}\n{most}")


def _write(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
