"""Cost tables as CSV: our own layout, and other people's columns mapped to it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpsearch.errors import DocumentError, InputError
from mpsearch.hardware.table import CostTable, Entry

__all__ = ["ColumnMapping", "csv_content", "import_csv"]

_RESOURCE = re.compile(r"(spread:)?(\w+)\[([^\]]+)\]")
_METADATA = re.compile(r"#\s*(\w+)\s*:\s*(.*)")


def csv_content(path: str | Path) -> dict[str, Any]:
    """Read a table in our own CSV layout.

    Lines that start with `# name: value` give device, licence, provenance and the like. The header
    names `layer`, `op`, `option`, shape keys, and a resource with its unit in brackets,
    `latency[ms]`; `spread:latency[ms]` is the spread of its measurements.

    Args:
        path: The file.

    Returns:
        The content of a CostTable, not checked yet.

    Raises:
        DocumentError: The file cannot be read, or names no resource with a unit.
    """
    metadata, header, rows = _read(path)
    columns = {name: found for name in header if (found := _RESOURCE.fullmatch(name))}
    if not columns:
        raise DocumentError(
            f"{path} has no resource: name one column with its unit in brackets, such as "
            f"latency[ms]; its columns are {', '.join(header)}"
        )
    entries: list[dict[str, Any]] = []
    for number, row in rows:
        entry: dict[str, Any] = {"shape": {}, "values": {}, "spread": {}}
        for name, text in row.items():
            if not text:
                continue
            if name in columns:
                part = "spread" if columns[name][1] else "values"
                entry[part][columns[name][2]] = _number(path, number, name, text)
            elif name in {"layer", "op", "option"}:
                entry[name] = text
            else:
                entry["shape"][name] = _size(path, number, name, text)
        entries.append(entry)
    units = {found[2]: found[3] for found in columns.values()}
    return {**metadata, "units": units, "entries": entries}


@dataclass(frozen=True)
class ColumnMapping:
    """How the columns of somebody's CSV file become a cost table.

    Templates hold column names in braces: `w{w_bits}a{a_bits}`.

    Attributes:
        option: Template of the option.
        values: Resource -> (column, unit).
        layer: Template of the layer's name; empty for tables by shape.
        op: Template of the kind of layer, for tables by shape.
        shape: Shape key -> column.
        rewrite: Changes an option after its template was filled.
    """

    option: str
    values: Mapping[str, tuple[str, str]]
    layer: str = ""
    op: str = ""
    shape: Mapping[str, str] = field(default_factory=dict)
    rewrite: Callable[[str], str] = str


def import_csv(
    path: str | Path,
    mapping: ColumnMapping,
    *,
    device: str,
    provenance: str,
    licence: str,
    batch: int = 1,
) -> CostTable:
    """Read somebody's CSV file.

    Args:
        path: The file.
        mapping: What its columns mean.
        device: Name of the device.
        provenance: Where the file comes from.
        licence: Licence of the figures.
        batch: Inputs that were processed together.

    Returns:
        The table.

    Raises:
        DocumentError: The file cannot be read, lacks a column, or a value is no number.
    """
    _, header, rows = _read(path)
    entries = []
    for number, row in rows:
        values = {
            resource: _number(path, number, column, _cell(path, row, column, header))
            for resource, (column, _) in mapping.values.items()
        }
        shape = {
            key: _size(path, number, column, _cell(path, row, column, header))
            for key, column in mapping.shape.items()
        }
        entries.append(
            Entry(
                layer=_filled(path, mapping.layer, row, header) or None,
                op=_filled(path, mapping.op, row, header) or None,
                shape=shape,
                option=mapping.rewrite(_filled(path, mapping.option, row, header)),
                values=values,
            )
        )
    content = {
        "device": device,
        "provenance": provenance,
        "licence": licence,
        "batch": batch,
        "units": {resource: unit for resource, (_, unit) in mapping.values.items()},
        "entries": [entry.model_dump() for entry in entries],
    }
    return CostTable.checked(content, str(path))


def _read(
    path: str | Path,
) -> tuple[dict[str, str], Sequence[str], list[tuple[int, dict[str, str]]]]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"cannot read {path}: {error}") from error
    notes = [match for line in lines if (match := _METADATA.fullmatch(line.strip()))]
    metadata = {match[1]: match[2].strip() for match in notes}
    kept = [
        (number, line)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    reader = csv.DictReader([line for _, line in kept])
    rows: list[tuple[int, dict[str, str]]] = []
    for (number, _), row in zip(kept[1:], reader, strict=False):
        if None in row or None in row.values():
            raise DocumentError(f"{path}, line {number}: not as many cells as the header has names")
        rows.append((number, {name.strip(): text.strip() for name, text in row.items()}))
    header = [name.strip() for name in reader.fieldnames or ()]
    if not rows:
        raise DocumentError(f"{path} has no rows")
    return metadata, header, rows


def _cell(path: str | Path, row: Mapping[str, str], column: str, header: Sequence[str]) -> str:
    if column not in row:
        raise DocumentError(f"{path} has no column {column!r}; it has {', '.join(header)}")
    return row[column]


def _filled(path: str | Path, template: str, row: Mapping[str, str], header: Sequence[str]) -> str:
    try:
        return template.format(**row)
    except KeyError as error:
        raise DocumentError(
            f"{path} has no column {error.args[0]!r} of {template!r}; it has {', '.join(header)}"
        ) from error
    except (ValueError, IndexError, AttributeError) as error:
        raise InputError(f"template {template!r}: {error}; write {{column}}") from error


def _number(path: str | Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DocumentError(f"{path}, line {line}: {column} is {text!r}, not a number") from error


def _size(path: str | Path, line: int, column: str, text: str) -> int:
    value = _number(path, line, column, text)
    if not value.is_integer():
        raise DocumentError(f"{path}, line {line}: {column} is {text!r}, not a whole number")
    return int(value)
