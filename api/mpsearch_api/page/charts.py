"""Plotly figures of the page, as plain dictionaries: what is drawn, not how it is shown."""

from __future__ import annotations

from html import escape
from typing import Any

from mpsearch.formats import parse_option
from mpsearch.schemas import Allocation, Frontier, Profile

__all__ = ["Figure", "bits_figure", "colour_of", "frontier_figure", "measured_figure"]

Figure = dict[str, Any]

# Okabe and Ito (2008), "Color Universal Design": told apart with any kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
GRID = "rgba(128,128,128,0.25)"
CONFIG = {"displayModeBar": False, "responsive": True}


def colour_of(option: str, options: list[str]) -> str:
    """Choose the colour of an option, the same in every chart of a job.

    Args:
        option: Name.
        options: All options of the job, in menu order.

    Returns:
        A CSS colour.
    """
    known = [*options, option]
    return COLOURS[known.index(option) % len(COLOURS)]


def frontier_figure(frontier: Frontier, chosen: Allocation | None) -> Figure:
    """Draw predicted loss over a resource, with the uniform allocations and the chosen one.

    Args:
        frontier: The curve.
        chosen: The allocation to mark, or None.

    Returns:
        A figure.
    """
    points = frontier.points
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "Pareto-optimal",
            "line": {"shape": "hv", "color": COLOURS[0]},
            "marker": {"size": 4},
            "x": [point.usage for point in points],
            "y": [point.predicted_loss for point in points],
            "hovertemplate": "%{x:.4s} " + frontier.unit + "<br>loss +%{y:.4g}<extra></extra>",
        }
    ]
    if frontier.uniform:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": "uniform",
                "text": list(frontier.uniform),
                "textposition": "top right",
                "marker": {"symbol": "x", "color": COLOURS[-1], "size": 8},
                "x": [point.usage for point in frontier.uniform.values()],
                "y": [point.predicted_loss for point in frontier.uniform.values()],
                "hovertemplate": "uniform %{text}<br>loss +%{y:.4g}<extra></extra>",
            }
        )
    if chosen is not None and frontier.resource in chosen.costs:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "chosen",
                "marker": {"symbol": "star", "size": 16, "color": COLOURS[5]},
                "x": [chosen.costs[frontier.resource]],
                "y": [chosen.predicted_loss],
                "hovertemplate": "chosen<br>%{x:.4s} "
                + frontier.unit
                + "<br>loss +%{y:.4g}<extra></extra>",
            }
        )
    return _figure(
        traces,
        xaxis={"title": {"text": f"{frontier.resource} [{frontier.unit}]"}, "tickformat": "~s"},
        yaxis={"title": {"text": "predicted loss increase"}},
    )


def bits_figure(allocation: Allocation, profile: Profile | None) -> Figure:
    """Draw the weight bits of every layer, coloured by option; scores are shown on hover.

    Args:
        allocation: What to draw.
        profile: Predicted losses to show beside each layer, or None.

    Returns:
        A figure.
    """
    options = list(profile.options) if profile is not None else []
    used = sorted(set(allocation.layers.values()), key=lambda name: parse_option(name).weight.bits)
    # Plotly reads a little HTML in every text, and names of layers come from uploaded files.
    layers = [escape(layer, quote=False) for layer in allocation.layers]
    scores = _scores(profile)
    traces = []
    for option in used:
        mine = [
            escape(layer, quote=False)
            for layer, given in allocation.layers.items()
            if given == option
        ]
        traces.append(
            {
                "type": "bar",
                "name": option,
                "marker": {"color": colour_of(option, options or used)},
                "x": mine,
                "y": [parse_option(option).weight.bits] * len(mine),
                "text": [option] * len(mine),
                "textposition": "none",
                "customdata": [scores.get(layer, "") for layer in mine],
                "hovertemplate": "<b>%{x}</b>: %{text}<br>%{customdata}<extra></extra>",
            }
        )
    return _figure(
        traces,
        barmode="overlay",
        xaxis={"categoryorder": "array", "categoryarray": layers, "tickangle": -60},
        yaxis={"title": {"text": "weight bits"}, "rangemode": "tozero"},
        legend={"title": {"text": "option"}},
    )


def measured_figure(allocation: Allocation) -> Figure | None:
    """Draw the measured loss of the allocation beside the float model and the baselines.

    Args:
        allocation: A verified allocation.

    Returns:
        A figure, or None when nothing was measured.
    """
    found = allocation.verification
    if found is None:
        return None
    bars = {"float": found.float_model.loss, "mpsearch": found.allocation.loss}
    for baseline in found.baselines:
        if baseline.measurement is not None:
            bars[baseline.name] = baseline.measurement.loss
    colours = [COLOURS[5] if name == "mpsearch" else COLOURS[4] for name in bars]
    trace = {
        "type": "bar",
        "x": list(bars),
        "y": list(bars.values()),
        "marker": {"color": colours},
        "hovertemplate": "%{x}: %{y:.5g}<extra></extra>",
    }
    return _figure(
        [trace],
        showlegend=False,
        yaxis={"title": {"text": f"measured {found.loss_function}"}, "rangemode": "tozero"},
    )


def _scores(profile: Profile | None) -> dict[str, str]:
    """Write each layer's predicted loss at every option it is offered, one per line."""
    if profile is None:
        return {}
    text = {}
    for row, group in enumerate(profile.groups):
        lines = [
            f"{option}: {profile.loss[row, column]:+.4g}"
            for column, option in enumerate(profile.options)
            if profile.offered[row, column]
        ]
        layers = profile.layers_of(group)
        shared = f"<br>shared by {len(layers)} layers" if len(layers) > 1 else ""
        for layer in layers:
            text[escape(layer, quote=False)] = "predicted loss<br>" + "<br>".join(lines) + shared
    return text


def _figure(traces: list[Figure], **layout: Any) -> Figure:
    return {
        "data": traces,
        "layout": {
            "autosize": True,
            "margin": {"l": 60, "r": 10, "t": 10, "b": 60},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": "#7a7a7a"},
            "legend": {"orientation": "h", "y": 1.1},
            "uirevision": "kept",
            **{
                axis: {"gridcolor": GRID, "automargin": True, **layout.pop(axis, {})}
                for axis in ("xaxis", "yaxis")
            },
            **layout,
        },
        "config": CONFIG,
    }
