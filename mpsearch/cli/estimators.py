"""`mpsearch estimators`: what can score layers."""

from __future__ import annotations

import dataclasses
import json
import sys

from rich import box
from rich.table import Table

from mpsearch.cli.arguments import JsonOption
from mpsearch.cli.console import show
from mpsearch.sensitivity import known

__all__ = ["estimators_command"]


def estimators_command(as_json: JsonOption = False) -> None:
    """List the sensitivity estimators: what each computes, what it costs, where it is from."""
    entries = known()
    if as_json:
        listed = [dataclasses.asdict(entry) for entry in entries]
        sys.stdout.write(json.dumps(listed, indent=1) + "\n")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("estimator", "score", "passes", "activations", "source"):
        table.add_column(column)
    for entry in entries:
        table.add_row(
            entry.name,
            entry.summary,
            entry.passes,
            "yes" if entry.scores_activations else "no",
            entry.source,
        )
    show(table)
