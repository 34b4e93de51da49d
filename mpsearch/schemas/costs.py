"""Costs: what every group spends of every resource at every option."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mpsearch.schemas.arrays import FloatMatrix
from mpsearch.schemas.document import Document, Record
from mpsearch.schemas.profile import ModelRecord, check_names

__all__ = ["Conversion", "Costs", "PeakStep"]


class PeakStep(Record):
    """What is occupied at one step of a schedule, for a resource that is a peak and not a sum."""

    name: str
    base: float = Field(default=0.0, ge=0, description="occupied whatever is chosen, in base units")
    cost: dict[str, list[float]] = Field(
        default_factory=dict,
        description="group -> what it occupies at every option; groups not named occupy nothing",
    )


class Conversion(Record):
    """What two neighbouring groups cost beside their own prices when their options differ."""

    groups: tuple[str, str]
    first: list[str] = Field(min_length=1, description="options of the first group that cause it")
    second: list[str] = Field(min_length=1, description="options of the second group likewise")
    cost: float = Field(ge=0, description="in the base unit, when both hold")


class Costs(Document):
    """Price list of one model: a table of groups x options for every resource."""

    kind: Literal["costs"] = "costs"
    groups: list[str] = Field(min_length=1)
    options: list[str] = Field(min_length=1)
    values: dict[str, FloatMatrix] = Field(
        default_factory=dict,
        description="resource -> groups x options, in the resource's base unit",
    )
    units: dict[str, str] = Field(description="resource -> base unit: B, BOPs, s, J, bits …")
    baseline: dict[str, float] = Field(
        default_factory=dict,
        description="resource -> cost of all quantizable layers in float32; what 0.25x refers to",
    )
    fixed: dict[str, float] = Field(
        default_factory=dict,
        description="resource -> cost of everything that is not allocated (biases, norms)",
    )
    provenance: dict[str, str] = Field(
        default_factory=dict, description="resource -> where its prices come from"
    )
    peaks: dict[str, list[PeakStep]] = Field(
        default_factory=dict,
        description="resource -> schedule steps; its use is the largest step, not a sum",
    )
    unavailable: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="group -> option -> why the device cannot run it; such options are not offered",
    )
    origins: dict[str, list[list[str]]] = Field(
        default_factory=dict,
        description="resource -> groups x options: how each price was found, such as `measured`, "
        "`interpolated`, `extrapolated`, `roofline`",
    )
    extrapolated: dict[str, list[str]] = Field(
        default_factory=dict,
        description="resource -> layers with a price from beyond the measured shapes",
    )
    conversions: dict[str, list[Conversion]] = Field(
        default_factory=dict,
        description="resource -> what pairs of neighbours add to the sum over groups",
    )
    tolerance: dict[str, float] = Field(
        default_factory=dict,
        description="resource -> largest relative error of its sums against whole models that "
        "were run; a resource not named was never checked",
    )
    warnings: list[str] = Field(default_factory=list)
    members: dict[str, list[str]] = Field(default_factory=dict)
    hardware: str | None = None
    model: ModelRecord | None = None

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        check_names("groups", self.groups)
        check_names("options", self.options)
        if not self.resources:
            raise ValueError("no resource is priced: both values and peaks are empty")
        shape = (len(self.groups), len(self.options))
        for resource, table in self.values.items():
            if table.shape != shape:
                raise ValueError(
                    f"values.{resource} has shape {table.shape}, groups x options is {shape}"
                )
            # NaN (null in JSON) is an option without a price; infinity is a mistake.
            if np.isinf(table).any():
                row, column = np.argwhere(np.isinf(table))[0]
                where = f"{self.groups[row]!r}, {self.options[column]!r}"
                raise ValueError(f"values.{resource}[{where}] is infinite; null means no price")
        for resource in self.resources:
            if resource not in self.units:
                raise ValueError(f"units has no entry for {resource!r}")
        for resource, origins in self.origins.items():
            if [len(row) for row in origins] != [shape[1]] * shape[0]:
                raise ValueError(f"origins.{resource} is not a table of groups x options")
        self._check_peaks()
        self._check_unavailable()
        self._check_conversions()
        return self

    def _check_conversions(self) -> None:
        for resource, pairs in self.conversions.items():
            if resource not in self.values:
                raise ValueError(f"conversions.{resource}: no resource of that name adds up")
            for pair in pairs:
                unknown = set(pair.groups) - set(self.groups)
                unknown |= (set(pair.first) | set(pair.second)) - set(self.options)
                if unknown or pair.groups[0] == pair.groups[1]:
                    raise ValueError(
                        f"conversions.{resource} of {pair.groups}: not two groups, or names "
                        f"{sorted(unknown)} that are no group or option"
                    )

    def _check_peaks(self) -> None:
        for resource, steps in self.peaks.items():
            if resource in self.values or not steps:
                raise ValueError(f"peaks.{resource} has no steps, or is in values too")
            check_names(f"peaks.{resource}", [step.name for step in steps])
            for step in steps:
                for group, prices in step.cost.items():
                    if group not in self.groups or len(prices) != len(self.options):
                        raise ValueError(
                            f"peaks.{resource}, step {step.name!r}: {group!r} is no group, or has "
                            f"not one price for each of {len(self.options)} options"
                        )

    def _check_unavailable(self) -> None:
        for group, reasons in self.unavailable.items():
            unknown = set(reasons) - set(self.options)
            if group not in self.groups or unknown:
                raise ValueError(
                    f"unavailable names {group!r} with {sorted(reasons)}: no such group or option"
                )

    @property
    def resources(self) -> list[str]:
        """Names of all resources, sums first, then peaks."""
        return [*self.values, *self.peaks]

    def offered(self, limited: Iterable[str] = ()) -> NDArray[np.bool_]:
        """Tell which options can be had.

        Args:
            limited: Resources that have a budget; an option without a price in one is left out.

        Returns:
            Bool mask, groups x options: what the device runs and what has a price.
        """
        mask = np.ones((len(self.groups), len(self.options)), bool)
        for group, reasons in self.unavailable.items():
            row = self.groups.index(group)
            mask[row, [self.options.index(option) for option in reasons]] = False
        for resource in limited:
            if resource in self.values:
                mask &= np.isfinite(self.values[resource])
        return mask

    def peak_rows(self, resource: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lay out a peak resource as arrays.

        Args:
            resource: A name from `peaks`.

        Returns:
            Costs, float64, steps x groups x options, and what every step holds anyway.
        """
        steps = self.peaks[resource]
        rows = {group: row for row, group in enumerate(self.groups)}
        cost = np.zeros((len(steps), len(self.groups), len(self.options)))
        for position, step in enumerate(steps):
            for group, prices in step.cost.items():
                cost[position, rows[group]] = prices
        return cost, np.array([step.base for step in steps])

    def usage(self, resource: str, columns: NDArray[np.integer[Any]]) -> float:
        """Compute what an allocation uses of a resource.

        Args:
            resource: A name from `resources`.
            columns: Option column of every group.

        Returns:
            The exact sum over groups and over neighbours that differ, or the largest step of a
            peak; NaN without a price.
        """
        rows = np.arange(len(self.groups))
        if resource in self.values:
            own = self.values[resource][rows, columns]
            return math.fsum([*own, *self._converted(resource, columns)])
        cost, base = self.peak_rows(resource)
        return _highest(cost[:, rows, columns], base)

    def _converted(self, resource: str, columns: NDArray[np.integer[Any]]) -> Iterator[float]:
        chosen = {
            group: self.options[column] for group, column in zip(self.groups, columns, strict=True)
        }
        for pair in self.conversions.get(resource, ()):
            if chosen[pair.groups[0]] in pair.first and chosen[pair.groups[1]] in pair.second:
                yield pair.cost

    def extreme(
        self, resource: str, offered: NDArray[np.bool_] | None = None, *, least: bool = True
    ) -> float:
        """Compute the least or most that can be used of one resource alone.

        Args:
            resource: A name from `resources`.
            offered: Bool mask of what groups are offered, groups x options; None: all that has a
                price.
            least: Whether the least is asked for, or the most.

        Returns:
            The sum of every group's cheapest (dearest) option, without what neighbours add. For a
            peak, the largest step with every group at its cheapest (dearest) in that step.
        """
        mask = self.offered([resource]) if offered is None else offered
        fill, pick = (np.inf, np.min) if least else (-np.inf, np.max)
        if resource in self.values:
            return math.fsum(pick(np.where(mask, self.values[resource], fill), axis=1))
        cost, base = self.peak_rows(resource)
        return _highest(pick(np.where(mask, cost, fill), axis=2), base)


def _highest(cost: NDArray[np.float64], base: NDArray[np.float64]) -> float:
    return max(
        math.fsum([start, *row]) for start, row in zip(base.tolist(), cost.tolist(), strict=True)
    )
