"""What `mpsearch hardware` prints of devices and cost tables."""

from __future__ import annotations

import statistics

from rich import box
from rich.markup import escape
from rich.table import Table

from mpsearch.cli.console import show
from mpsearch.hardware.device import Device
from mpsearch.hardware.table import CostTable

__all__ = ["plain_table", "show_device", "show_table", "timings"]


def show_device(found: Device) -> None:
    """Print every figure of a device with its source.

    Args:
        found: The device.
    """
    show(f"[bold]{found.name}[/]  {escape(found.summary)}")
    table = plain_table("figure", "value", "source", "confirmed")

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


def show_table(found: CostTable) -> None:
    """Print what a cost table holds, and where it comes from.

    Args:
        found: The table.
    """
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


def plain_table(*columns: str) -> Table:
    """Begin a table of text.

    Args:
        *columns: Their headings.

    Returns:
        The table, without rows.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def timings(found: CostTable) -> Table:
    """Compare the options of a measured table with float, shape by shape.

    Args:
        found: The table.

    Returns:
        What to print.
    """
    table = plain_table("option", "sum of layer shapes", "median spread", "slower than float at")
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
