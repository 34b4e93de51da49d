"""Cost tables: what an operation of some shape spends at an option on a device."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mpsearch.budgets import UNITS
from mpsearch.errors import DependencyError, DocumentError, InputError
from mpsearch.formats import parse_option
from mpsearch.hardware.interpolation import Estimate, interpolate
from mpsearch.hardware.shapes import structure
from mpsearch.schemas.document import Document, Record

__all__ = ["Check", "CostTable", "Entry", "MissingKernel", "to_base"]


class Entry(Record):
    """One row: an operation at an option, and what it spends."""

    layer: str | None = Field(default=None, description="a layer by name; then no shape is needed")
    op: str | None = Field(default=None, description="kind of layer: conv2d, linear, embedding …")
    shape: dict[str, int] = Field(
        default_factory=dict, description="shape keys; the same for every row of an operation"
    )
    option: str = Field(description="such as w4a8; its spelling does not matter, its formats do")
    values: dict[str, float] = Field(
        min_length=1, description="resource -> cost in the table's unit"
    )
    spread: dict[str, float] = Field(
        default_factory=dict, description="resource -> spread of repeated measurements, same unit"
    )

    @property
    def place(self) -> str:
        """What the row is about, in words."""
        sizes = " ".join(f"{key}={value}" for key, value in self.shape.items())
        return f"{self.layer or self.op} {sizes} {self.option}".replace("  ", " ")


class MissingKernel(Record):
    """An option that the device has no kernel for."""

    option: str
    op: str | None = Field(default=None, description="kind of layer; null: every kind")
    reason: str = Field(min_length=1)


class Check(Record):
    """A sum of costs compared with the cost of a whole model that was really executed."""

    model: str
    allocation: str = Field(description="`uniform w8a8`, `alternating`, `random 3` …")
    resource: str = "latency"
    predicted: float = Field(gt=0, description="in the table's unit")
    measured: float = Field(gt=0, description="in the table's unit")

    @property
    def error(self) -> float:
        """Relative error of the prediction; positive where it is too high."""
        return self.predicted / self.measured - 1.0


class CostTable(Document):
    """Costs of operations on a device, measured or given, with their origin and licence."""

    kind: Literal["cost_table"] = "cost_table"
    device: str = Field(min_length=1)
    description: str = ""
    provenance: str = Field(min_length=1, description="who measured or modelled this, and where")
    origin: Literal["measured", "modelled", "given"] = Field(
        default="given", description="how the values came about; the origin of looked-up prices"
    )
    licence: str = Field(min_length=1, description="SPDX name, or `own` for one's own figures")
    units: dict[str, str] = Field(
        min_length=1,
        description="resource -> unit of every value, such as ms, MB, mJ; any word for a column "
        "of one's own",
    )
    batch: int = Field(default=1, ge=1, description="inputs that were processed together")
    entries: list[Entry] = Field(min_length=1)
    unavailable: list[MissingKernel] = Field(default_factory=list)
    conditions: dict[str, str] = Field(
        default_factory=dict, description="clock, library, precision of accumulation …"
    )
    reference_seconds: float | None = Field(
        default=None,
        gt=0,
        description="what a fixed matrix product took meanwhile: the pace of the machine",
    )
    checks: list[Check] = Field(
        default_factory=list, description="summed costs compared with whole models that were run"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[object] = set()
        keys: dict[str, set[str]] = {}
        for number, entry in enumerate(self.entries):
            where = f"entries[{number}] ({entry.place})"
            _check_entry(where, entry, self.units)
            option = _key(entry.option)
            same = (entry.layer, entry.op, tuple(sorted(entry.shape.items())), option)
            if same in seen:
                raise ValueError(f"{where} repeats an earlier row; average repetitions first")
            seen.add(same)
            if entry.layer is None and entry.op is not None:
                expected = keys.setdefault(entry.op, set(entry.shape))
                if set(entry.shape) != expected:
                    raise ValueError(
                        f"{where} has keys {sorted(entry.shape)}, other rows of {entry.op} have "
                        f"{sorted(expected)}"
                    )
        for missing in self.unavailable:
            _key(missing.option)
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a table from JSON, YAML or CSV, told by the file's ending.

        Args:
            path: The file.

        Returns:
            The table.

        Raises:
            DocumentError: The file cannot be read or does not fit the schema.
            DependencyError: YAML, and PyYAML is not installed.
        """
        file = Path(path)
        if file.suffix == ".csv":
            from mpsearch.hardware.csv_tables import csv_content

            return cls.checked(csv_content(file), str(file))
        if file.suffix not in {".yaml", ".yml"}:
            return cls.load(file)
        try:
            import yaml  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"{file} is YAML, and PyYAML is not installed; run: pip install pyyaml"
            ) from error
        try:
            content = yaml.safe_load(file.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise DocumentError(f"cannot read {file}: {error}") from error
        return cls.parse(json.dumps(content, default=str), str(file))

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Tell whether a file says of itself that it is a cost table.

        Args:
            path: A file.

        Returns:
            True for CSV and YAML, and for JSON of this kind.
        """
        file = Path(path)
        if file.suffix in {".csv", ".yaml", ".yml"}:
            return True
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False  # whoever loads it as something else says what is wrong with it
        return isinstance(content, dict) and content.get("kind") == "cost_table"

    @classmethod
    def checked(cls, content: dict[str, Any], where: str) -> Self:
        """Check the content of a table that was put together from another file.

        Args:
            content: As in the JSON form.
            where: What to call it in an error, usually a file name.

        Returns:
            The table.
        """
        return cls.parse(json.dumps(content), where)

    @property
    def resources(self) -> list[str]:
        """Names of the priced resources."""
        return list(self.units)

    @property
    def tolerance(self) -> dict[str, float]:
        """Resource -> largest relative error that checks against whole models showed."""
        found: dict[str, float] = {}
        for check in self.checks:
            found[check.resource] = max(found.get(check.resource, 0.0), abs(check.error))
        return found

    @property
    def options(self) -> list[str]:
        """Names of the options that any row prices."""
        return list({_key(entry.option): entry.option for entry in self.entries}.values())

    @property
    def ops(self) -> list[str]:
        """Kinds of layers that rows without a layer name price."""
        return list(dict.fromkeys(e.op for e in self.entries if e.op and e.layer is None))

    @cached_property
    def _by_layer(self) -> dict[tuple[str, object], Entry]:
        return {(e.layer, _key(e.option)): e for e in self.entries if e.layer is not None}

    @cached_property
    def _by_op(self) -> dict[tuple[str, object], list[Entry]]:
        found: dict[tuple[str, object], list[Entry]] = {}
        for entry in self.entries:
            if entry.layer is None and entry.op is not None:
                found.setdefault((entry.op, _key(entry.option)), []).append(entry)
        return found

    def why_missing(self, op: str | None, option: str) -> str | None:
        """Say why an option cannot be run, where the table says that it cannot.

        Args:
            op: Kind of layer, or None.
            option: Name of the option.

        Returns:
            The reason, or None.
        """
        key = _key(option)
        for missing in self.unavailable:
            if _key(missing.option) == key and missing.op in {None, op}:
                return missing.reason
        return None

    def of_layer(self, layer: str, option: str, resource: str) -> Estimate | None:
        """Look a cost up by the layer's name.

        Args:
            layer: Name of the layer.
            option: Name of the option.
            resource: One of `resources`.

        Returns:
            The cost in the base unit; None where the table does not name this layer and option.
        """
        entry = self._by_layer.get((layer, _key(option)))
        if entry is None or resource not in entry.values:
            return None
        return Estimate(to_base(entry.values[resource], self.units[resource])[0], self.origin)

    def of_shape(
        self, op: str, shape: dict[str, int], option: str, resource: str
    ) -> Estimate | str:
        """Look a cost up by kind and shape, or estimate it from the shapes that were measured.

        Args:
            op: Kind of layer.
            shape: All shape keys of the layer; those that the table does not use are ignored.
            option: Name of the option.
            resource: One of `resources`.

        Returns:
            The cost in the base unit, or why there is none.
        """
        rows = [
            entry for entry in self._by_op.get((op, _key(option)), []) if resource in entry.values
        ]
        if not rows:
            return f"the table has no {op} at {option}"
        missing = set(rows[0].shape) - set(shape)
        if missing:
            return f"the table's {op} has shape keys that the layer lacks: {sorted(missing)}"
        alike = {key: shape[key] for key in rows[0].shape}
        kernel = structure(alike)
        rows = [entry for entry in rows if structure(entry.shape) == kernel]
        if not rows:
            wanted = ", ".join(f"{key} {value}" for key, value in kernel)
            return f"the table has no {op} with {wanted} at {option}"
        keys = list(alike)
        found = interpolate(
            np.array([[entry.shape[key] for key in keys] for entry in rows], dtype=np.float64),
            np.array([entry.values[resource] for entry in rows]),
            np.array([alike[key] for key in keys], dtype=np.float64),
        )
        origin = self.origin if found.origin == "measured" else found.origin
        return Estimate(to_base(found.value, self.units[resource])[0], origin)


def to_base(value: float, unit: str) -> tuple[float, str]:
    """Convert to the base unit.

    Args:
        value: An amount.
        unit: Its unit: any spelling that budgets know, or a word of one's own.

    Returns:
        The amount in the base unit, and the base unit.
    """
    for base, spellings in UNITS.items():
        if unit in spellings and unit not in {"", *"kKMGTP"}:
            return value * spellings[unit], base
    return value, unit


def _key(option: str) -> object:
    return parse_option(option).key


def _check_entry(where: str, entry: Entry, units: Iterable[str]) -> None:
    if entry.layer is None and (entry.op is None or not entry.shape):
        raise ValueError(f"{where} needs a layer name, or an op with a shape")
    if any(value < 1 for value in entry.shape.values()):
        raise ValueError(f"{where} has a size below 1")
    try:
        parse_option(entry.option)
    except InputError as error:
        raise ValueError(f"{where}: {error}") from error
    for resource, value in (*entry.values.items(), *entry.spread.items()):
        if resource not in units:
            raise ValueError(f"{where}: units has no entry for {resource!r}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{where}: {resource} is {value}; costs are finite and not negative")
    if entry.layer is None and any(value <= 0 for value in entry.values.values()):
        raise ValueError(f"{where}: a cost by shape is interpolated in log space, so not zero")
