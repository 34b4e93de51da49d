"""Costs: what every group spends of every resource at every option."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mpsearch.schemas.arrays import FloatMatrix
from mpsearch.schemas.document import Document
from mpsearch.schemas.profile import ModelRecord, check_names, check_table

__all__ = ["Costs"]


class Costs(Document):
    """Price list of one model: a table of groups x options for every resource."""

    kind: Literal["costs"] = "costs"
    groups: list[str] = Field(min_length=1)
    options: list[str] = Field(min_length=1)
    values: dict[str, FloatMatrix] = Field(
        min_length=1, description="resource -> groups x options, in the resource's base unit"
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
    members: dict[str, list[str]] = Field(default_factory=dict)
    hardware: str | None = None
    model: ModelRecord | None = None

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        check_names("groups", self.groups)
        check_names("options", self.options)
        everywhere = np.ones((len(self.groups), len(self.options)), bool)
        for resource, table in self.values.items():
            check_table(f"values.{resource}", table, everywhere, self.groups, self.options)
            if resource not in self.units:
                raise ValueError(f"units has no entry for {resource!r}")
        return self
