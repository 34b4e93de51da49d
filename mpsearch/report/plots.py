"""Pictures of an answer: the frontier with the chosen point, and the bits of every layer."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mpsearch.errors import DependencyError
from mpsearch.report.tables import bits_of
from mpsearch.schemas import Allocation, Frontier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bits_png", "frontier_png"]


def frontier_png(frontier: Frontier, allocation: Allocation | None = None) -> bytes:
    """Draw the frontier, the uniform allocations and the chosen one.

    Args:
        frontier: What to draw.
        allocation: The chosen allocation, if there is one.

    Returns:
        A PNG.
    """
    figure = _figure(7.0, 4.5)
    axes = figure.add_subplot()
    axes.plot(
        [point.usage for point in frontier.points],
        [point.predicted_loss for point in frontier.points],
        drawstyle="steps-post",
        marker=".",
        color="tab:blue",
        label="Pareto-optimal",
    )
    for option, point in frontier.uniform.items():
        axes.plot(point.usage, point.predicted_loss, "x", color="tab:gray")
        axes.annotate(
            option,
            (point.usage, point.predicted_loss),
            fontsize=8,
            xytext=(3, 3),
            textcoords="offset points",
        )
    if frontier.uniform:
        axes.plot([], [], "x", color="tab:gray", label="uniform")
    if allocation is not None and frontier.resource in allocation.costs:
        usage = allocation.costs[frontier.resource]
        axes.plot(
            usage, allocation.predicted_loss, "*", markersize=14, color="tab:red", label="chosen"
        )
    losses = [p.predicted_loss for p in (*frontier.points, *frontier.uniform.values())]
    largest = max(map(abs, losses), default=0.0) or 1.0
    # Losses span decades and may be zero or negative: logarithmic over four decades on both sides,
    # linear around zero.
    axes.set_yscale("symlog", linthresh=1e-4 * largest)
    axes.set_xlabel(f"{frontier.resource} [{frontier.unit}]")
    axes.set_ylabel("predicted loss increase")
    axes.legend()
    axes.grid(alpha=0.3)
    return _png(figure)


def bits_png(allocation: Allocation) -> bytes:
    """Draw the weight bits of every layer, coloured by option.

    Args:
        allocation: What to draw.

    Returns:
        A PNG.
    """
    layers = list(allocation.layers)
    figure = _figure(max(6.0, 0.25 * len(layers) + 2), 4.0)
    axes = figure.add_subplot()
    options = sorted(set(allocation.layers.values()), key=bits_of)
    for index, option in enumerate(options):
        places = [i for i, layer in enumerate(layers) if allocation.layers[layer] == option]
        axes.bar(places, [bits_of(option)] * len(places), color=f"C{index}", label=option)
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    axes.set_ylabel("weight bits")
    axes.set_title(f"{allocation.status}, predicted loss {allocation.predicted_loss:.4g}")
    axes.legend(title="option", fontsize=8)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure as NewFigure
    except ImportError as error:
        raise DependencyError(
            "pictures need matplotlib, which is not installed; run: pip install 'mpsearch[plots]'"
        ) from error
    # A Figure of its own, without pyplot: no global state, no display, safe in any thread.
    return NewFigure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
