"""The files of a finished job."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mpsearch.report.page import report_page
from mpsearch.report.plots import bits_png, frontier_png
from mpsearch.report.tables import bits_of
from mpsearch.schemas import Allocation, Costs, Frontier, Profile
from mpsearch_api.execution.outcome import Made

__all__ = ["layers_csv", "write_artifacts"]


def write_artifacts(
    folder: Path, answer: Allocation, scores: Profile, costs: Costs, curve: Frontier
) -> Sequence[Made]:
    """Write everything that clients may ask a finished job for.

    Args:
        folder: An empty folder.
        answer: The allocation.
        scores: The profile.
        costs: The prices.
        curve: The frontier of the first budget.

    Returns:
        The files.
    """
    pictures = {"frontier": frontier_png(curve, answer), "bits": bits_png(answer)}
    captions = {
        "Frontier of predicted loss, with the answer": pictures["frontier"],
        "Weight bits of every layer": pictures["bits"],
    }
    page = report_page(answer, scores, costs, curve, pictures=captions)
    contents = {
        "allocation.json": (answer.model_dump_json(indent=1).encode(), "application/json"),
        "profile.json": (scores.model_dump_json(indent=1).encode(), "application/json"),
        "costs.json": (costs.model_dump_json(indent=1).encode(), "application/json"),
        "frontier.json": (curve.model_dump_json(indent=1).encode(), "application/json"),
        "report.html": (page.encode(), "text/html; charset=utf-8"),
        "frontier.png": (pictures["frontier"], "image/png"),
        "bits.png": (pictures["bits"], "image/png"),
        "layers.csv": (layers_csv(answer, scores, costs).encode(), "text/csv; charset=utf-8"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return [Made(name=name, media_type=kind) for name, (_, kind) in contents.items()]


def layers_csv(answer: Allocation, scores: Profile, costs: Costs) -> str:
    """List layers with their options as a table for spreadsheets.

    Args:
        answer: The allocation.
        scores: Adds the predicted loss of the layer's group.
        costs: Adds every resource of the layer's group that adds up.

    Returns:
        CSV (RFC 4180) with a header; costs are in base units.
    """
    resources = list(costs.values)
    written = io.StringIO()
    rows = csv.writer(written)
    rows.writerow(
        ["layer", "group", "option", "weight_bits", "group_predicted_loss"]
        + [f"group_{name}_{costs.units[name]}" for name in resources]
    )
    for row, group in enumerate(scores.groups):
        option = answer.groups[group]
        loss = float(scores.loss[row, scores.options.index(option)])
        column = costs.options.index(option)
        spent = [float(costs.values[name][row, column]) for name in resources]
        for layer in scores.layers_of(group):
            rows.writerow(
                [_cell(layer), _cell(group), _cell(option), bits_of(option), loss, *spent]
            )
    return written.getvalue()


def _cell(text: str) -> str:
    """Keep a name from being taken for a formula (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
