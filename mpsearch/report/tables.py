"""Tables for people: layers with a bar each, budgets, the certificate, the measurement."""

from __future__ import annotations

import math

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mpsearch.budgets import format_amount
from mpsearch.formats import parse_option
from mpsearch.schemas import (
    Allocation,
    Costs,
    Frontier,
    Measurement,
    Profile,
    Refinement,
    Verification,
)

__all__ = [
    "allocation_report",
    "bits_of",
    "costs_table",
    "frontier_table",
    "profile_table",
    "refinement_line",
    "verification_table",
]

BAR_WIDTH = 16


def bits_of(option: str) -> float:
    """Read how many bits an option gives to a weight.

    Args:
        option: Name of the option.

    Returns:
        Element bits of the weight format; scales are not counted.
    """
    return parse_option(option).weight.bits


def allocation_report(
    allocation: Allocation, profile: Profile | None = None, costs: Costs | None = None
) -> RenderableType:
    """Show an allocation: layers, budgets, certificate, measurement, warnings.

    Args:
        allocation: What to show.
        profile: Adds each group's predicted loss.
        costs: Adds each group's memory.

    Returns:
        Something rich can print.
    """
    parts: list[RenderableType] = [_layers(allocation, profile, costs), _budgets(allocation)]
    parts.append(_certificate(allocation))
    if allocation.verification is not None:
        parts.append(verification_table(allocation.verification))
    else:
        parts.append(Text("Nothing was verified: the allocation was not run on a model.", "yellow"))
    parts += [Text(f"warning: {warning}", "yellow") for warning in allocation.warnings]
    return Group(*parts)


def _layers(allocation: Allocation, profile: Profile | None, costs: Costs | None) -> RenderableType:
    table = _table("Allocation", "group", "option", "bits")
    if profile is not None:
        table.add_column("predicted loss", justify="right")
    if costs is not None and "weight_memory" in costs.values:
        table.add_column("memory", justify="right")
    for row, (group, option) in enumerate(allocation.groups.items()):
        cells = [group, option, _bar(bits_of(option), 16.0)]
        if profile is not None:
            column = profile.options.index(option)
            error = profile.stderr[row, column]
            spread = f" ± {error:.1g}" if error else ""
            cells.append(f"{profile.loss[row, column]:+.3g}{spread}")
        if costs is not None and "weight_memory" in costs.values:
            column = costs.options.index(option)
            spent = float(costs.values["weight_memory"][row, column])
            cells.append(format_amount(spent, "B"))
        table.add_row(*cells)
    return table


def _bar(bits: float, longest: float) -> str:
    filled = max(1, round(BAR_WIDTH * min(bits, longest) / longest))
    return f"{bits:4.3g} {'█' * filled}"


def _budgets(allocation: Allocation) -> RenderableType:
    table = _table(
        "Resources", "resource", "used", "budget", "share", "least possible", "shadow price"
    )
    for resource, used in allocation.costs.items():
        unit = allocation.units.get(resource, "")
        budget = allocation.budgets.get(resource)
        if budget is None:
            table.add_row(resource, format_amount(used, unit), *["–"] * 4, style="dim")
            continue
        table.add_row(
            resource,
            format_amount(budget.usage, unit),
            f"{format_amount(budget.limit, unit)} ({budget.requested})",
            f"{budget.usage / budget.limit:.1%}",
            format_amount(budget.least, unit),
            _shadow_price(allocation, resource),
        )
    steps = [
        f"{resource} peaks at {budget.binding_step}"
        for resource, budget in allocation.budgets.items()
        if budget.binding_step
    ]
    steps += [
        f"{resource} is a sum; whole models that were run differed by up to {budget.tolerance:.1%}"
        for resource, budget in allocation.budgets.items()
        if budget.tolerance is not None
    ]
    fixed = allocation.fixed.get("weight_memory")
    if fixed:
        steps.append(f"beside the budget, in float32: {format_amount(fixed, 'B')} of weight_memory")
    table.caption = "\n".join(steps) or None
    return table


def _shadow_price(allocation: Allocation, resource: str) -> str:
    """Say how much predicted loss one per cent more of a budget would save, from the dual."""
    price = allocation.shadow_prices.get(resource)
    if price is None:
        return "–"
    return f"{price * allocation.budgets[resource].limit / 100:.3g} loss per 1%"


def _certificate(allocation: Allocation) -> RenderableType:
    colour = "green" if allocation.status == "optimal" else "yellow"
    text = Text()
    if allocation.goal != "min:loss":
        text.append("smallest found", "bold yellow")
        text.append(
            f" for {allocation.goal} with a drop of at most {allocation.max_drop:.2%}: "
            f"{allocation.allocations_measured} allocations measured, smaller ones not excluded.\n"
            "At this use: "
        )
    text.append(allocation.status, f"bold {colour}")
    text.append(f"  predicted loss {allocation.predicted_loss:.6g} ({allocation.estimator})")
    if allocation.bound is None:
        text.append(", no lower bound")
    else:
        text.append(f", lower bound {allocation.bound:.6g}, gap {allocation.gap or 0.0:.2g}")
    by = ", ".join(filter(None, (allocation.method, allocation.solver)))
    text.append(f"  [{by}, {allocation.seconds:.3f} s]", "dim")
    if allocation.refinement is not None:
        text.append("\n" + refinement_line(allocation.refinement), "dim")
    return text


def refinement_line(found: Refinement) -> str:
    """Say what a refinement came to.

    Args:
        found: What was measured.

    Returns:
        A clause without a full stop.
    """
    if found.measured == 1:
        return f"refined: {found.proposals} proposals gave nothing but the predicted best"
    ran = f"{found.measured} allocations run on the calibration data"
    if found.loss_before is None:
        return f"refined: {ran}; loss {found.loss_after:.6g}, where the predicted best diverges"
    if found.standard_error is None:
        return f"refined: {ran}, none measurably better than the predicted best"
    return (
        f"refined: {ran}; loss {found.loss_after:.6g} in place of {found.loss_before:.6g} of the "
        f"predicted best, standard error of the difference {found.standard_error:.2g}"
    )


def verification_table(verification: Verification) -> RenderableType:
    """Show what was measured, beside the float model and the baselines.

    Args:
        verification: What was measured.

    Returns:
        Something rich can print.
    """
    metric = verification.metric_name
    where = "held out" if verification.held_out else "the calibration inputs themselves"
    table = _table(
        f"Measured on {verification.data.inputs} inputs of {verification.data.name} ({where})",
        "",
        f"loss ({verification.loss_function})",
    )
    if metric:
        table.add_column(metric, justify="right")
    table.add_column("note", style="dim")

    def add(name: str, found: Measurement | None, note: str, style: str = "") -> None:
        loss = "–" if found is None else f"{found.loss:.5f}"
        score = "–"
        if found is not None and found.metric is not None:
            written = ".2%" if verification.metric_is_share else ".5g"
            score = format(found.metric, written)
        table.add_row(name, loss, *([score] if metric else []), note, style=style)

    add("float", verification.float_model, "")
    add("mpsearch", verification.allocation, "", "bold")
    for baseline in verification.baselines:
        add(baseline.name, baseline.measurement, baseline.description)
    return table


def profile_table(profile: Profile) -> RenderableType:
    """Show predicted losses, groups x options.

    Args:
        profile: What to show.

    Returns:
        Something rich can print.
    """
    title = f"Predicted loss increase ({profile.estimator})"
    table = _table(title, "group", *profile.options)
    for row, group in enumerate(profile.groups):
        cells = []
        for column in range(len(profile.options)):
            if not profile.offered[row, column]:
                cells.append("–")
                continue
            error = profile.stderr[row, column]
            spread = f" ± {error:.1g}" if error else ""
            cells.append(f"{profile.loss[row, column]:+.3g}{spread}")
        table.add_row(group, *cells)
    warnings = [Text(f"warning: {warning}", "yellow") for warning in profile.warnings]
    return Group(table, *warnings)


def costs_table(costs: Costs) -> RenderableType:
    """Show prices, one table for every resource.

    Args:
        costs: What to show.

    Returns:
        Something rich can print.
    """
    tables: list[RenderableType] = []
    for resource, values in costs.values.items():
        unit = costs.units[resource]
        table = _table(f"{resource}", "group", *costs.options)
        for row, group in enumerate(costs.groups):
            reasons = costs.unavailable.get(group, {})
            cells = [
                "–" if math.isnan(value) or option in reasons else format_amount(value, unit)
                for option, value in zip(costs.options, values[row].tolist(), strict=True)
            ]
            table.add_row(group, *cells)
        if resource in costs.baseline:
            table.caption = f"float model: {format_amount(costs.baseline[resource], unit)}"
        tables.append(table)
    tables += [_peak_table(costs, resource) for resource in costs.peaks]
    return Group(*tables, *[Text(f"warning: {warning}", "yellow") for warning in costs.warnings])


def _peak_table(costs: Costs, resource: str) -> Table:
    """Show what the model peaks at with every group at the same option, which has no rows."""
    table = _table(f"{resource}, a peak over {len(costs.peaks[resource])} steps", "all groups at")
    table.add_column("peak", justify="right")
    unit = costs.units[resource]
    for column, option in enumerate(costs.options):
        peak = costs.usage(resource, np.full(len(costs.groups), column))
        table.add_row(option, format_amount(peak, unit))
    if resource in costs.baseline:
        table.caption = f"float model: {format_amount(costs.baseline[resource], unit)}"
    return table


def frontier_table(frontier: Frontier) -> RenderableType:
    """Show the points of a frontier, cheapest first.

    Args:
        frontier: What to show.

    Returns:
        Something rich can print.
    """
    table = _table(
        f"Frontier of predicted loss and {frontier.resource}",
        frontier.resource,
        "predicted loss",
        "gap",
        "status",
    )
    for point in frontier.points:
        table.add_row(
            format_amount(point.usage, frontier.unit),
            f"{point.predicted_loss:.6g}",
            "–" if point.gap is None else f"{point.gap:.2g}",
            point.status,
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column in _TEXT else "right")
    return table


_TEXT = {"option", "bits", "status"}
