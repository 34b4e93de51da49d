"""Objective and rows brought to O(1), so that absolute tolerances of solvers mean something.

Every table is shifted by each group's least entry and divided by the largest entry that remains.
The choice is unchanged: exactly one option per group pays the shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.model import Model, Row
from mpsearch_solvers.problem import Bools, Floats


@dataclass(frozen=True, eq=False)
class Scaled:
    """One table in scaled units: original sum = offset + scale * scaled sum.

    Attributes:
        table: Shape (groups, options), from 0 to 1; zero where not allowed.
        scale: Original units per scaled unit, positive.
        offset: Original sum of every group's least entry.
    """

    table: Floats
    scale: float
    offset: float

    def restore(self, value: float) -> float:
        """Return a scaled sum in original units."""
        return self.offset + self.scale * value

    def convert(self, value: float) -> float:
        """Return an original sum in scaled units."""
        return (value - self.offset) / self.scale


def scale_table(table: Floats, allowed: Bools) -> Scaled:
    """Shift and scale one table.

    Args:
        table: Shape (groups, options).
        allowed: Entries that count.

    Returns:
        The scaled table; all zero with scale 1 when every group's entries are equal.
    """
    least = np.where(allowed, table, np.inf).min(axis=1)
    shifted = np.where(allowed, table - least[:, None], 0.0)
    largest = float(shifted.max())
    # A power of two divides without rounding, so equal sums stay equal.
    scale = 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
    return Scaled(shifted / scale, scale, math.fsum(least.tolist()))


def scale_row(model: Model, row: Row) -> tuple[Scaled, float]:
    """Return a row's scaled costs and its limit in the same units."""
    scaled = scale_table(row.cost, model.allowed)
    return scaled, scaled.convert(row.limit)
