"""Plain CSV: one line per layer, for spreadsheets."""

from __future__ import annotations

import csv
import io

from mpsearch.export.protocol import Request
from mpsearch.export.targets.tables_json import describe
from mpsearch.formats import parse_option

__all__ = ["parse", "render"]

_COLUMNS = (
    *("layer", "option", "weight_format", "weight_bits", "weight_scale_per"),
    *("activation_format", "activation_bits"),
)


def render(request: Request) -> str:
    """Write a header and one line per layer."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    for layer, option in request.layers.items():
        weight, activation = describe(option.weight), describe(option.activation)
        table.writerow(
            [
                *(layer, option.name, weight["format"], weight["bits"], weight["scale_per"] or ""),
                *(activation["format"], activation["bits"]),
            ]
        )
    return out.getvalue()


def parse(text: str) -> dict[str, str]:
    """Read layer -> option."""
    return {
        row["layer"]: parse_option(row["option"]).name for row in csv.DictReader(io.StringIO(text))
    }
