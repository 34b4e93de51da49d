"""Steps that make a model smaller and better scaled without changing its optimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.lagrangian import Knapsack
from mpsearch_solvers.model import Model, Row
from mpsearch_solvers.problem import Bools, Floats
from mpsearch_solvers.scaling import Scaled, scale_table

# Up to so many columns, pairs of columns are compared for all groups at once.
_WIDE = 64


@dataclass(frozen=True)
class Presolve:
    """Which steps to take; every combination gives the same optimum.

    Attributes:
        scaling: Divide objective and rows to O(1).
        dominated: Drop options that another beats or equals in objective and every row.
        redundant_rows: Drop rows that no choice can exceed.
        fixing: Drop options whose reduced cost alone closes the gap.
    """

    scaling: bool = True
    dominated: bool = True
    redundant_rows: bool = True
    fixing: bool = True


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model ready for the dual.

    Attributes:
        model: The model without dominated options.
        rows: The rows that can bind, with their position in the original model.
        knapsack: Objective and those rows in scaled units.
        objective: How to bring objective values back.
        scales: Original units per scaled unit of each kept row.
    """

    model: Model
    rows: tuple[int, ...]
    knapsack: Knapsack
    objective: Scaled
    scales: Floats


def prepare(model: Model, steps: Presolve) -> Prepared:
    """Run the steps that need no bounds.

    Args:
        model: A linear one-hot model.
        steps: Which steps to take.

    Returns:
        The prepared model.
    """
    if steps.dominated:
        model = model.restricted(undominated(model))
    kept = tuple(
        position
        for position, row in enumerate(model.rows)
        if not (steps.redundant_rows and is_redundant(model, row))
    )
    allowed = model.allowed
    objective = _scale(np.where(allowed, model.objective, 0.0), allowed, steps)
    tables = [_scale(model.rows[position].cost, allowed, steps) for position in kept]
    limits = [
        _relaxed(model.rows[position], table) for position, table in zip(kept, tables, strict=True)
    ]
    costs = [table.table for table in tables]
    knapsack = Knapsack(
        loss=np.where(allowed, objective.table, np.inf),
        cost=np.stack(costs) if costs else np.zeros((0, *model.shape)),
        limit=np.array(limits),
    )
    scales = np.array([table.scale for table in tables])
    return Prepared(model, kept, knapsack, objective, scales)


def _relaxed(row: Row, table: Scaled) -> float:
    """Return a row's limit in scaled units, above the true one by what float sums may lose.

    So the dual stays a bound even where the limit equals some allocation's usage to the last
    bit; whether an allocation fits is decided by exact sums alone.
    """
    largest = float(np.abs(row.cost).max(axis=1).sum())
    rounding = 1e-14 * (abs(row.limit) + abs(table.offset) + largest) / table.scale
    return table.convert(row.limit) + rounding


def _scale(table: Floats, allowed: Bools, steps: Presolve) -> Scaled:
    scaled = scale_table(table, allowed)
    if steps.scaling:
        return scaled
    return Scaled(scaled.table * scaled.scale, 1.0, scaled.offset)


def undominated(model: Model) -> Bools:
    """Return the options that no other option of the group beats or equals everywhere.

    Of equals the first stays. Sums rounded by `math.fsum` are monotone in every term, so the
    allocation that swaps a dominated option for its better is feasible whenever the first was.
    """
    kept = model.allowed.copy()
    tables = [model.objective, *(row.cost for row in model.rows)]
    width = model.shape[1]
    if width > _WIDE:
        for group in range(len(kept)):
            columns = np.flatnonzero(kept[group])
            points = np.stack([table[group, columns] for table in tables])
            kept[group, columns] = _front(points)
        return kept
    for worse in range(width):
        for better in range(width):
            if worse == better:
                continue
            beaten = kept[:, worse] & kept[:, better]
            for table in tables:
                beaten &= table[:, better] <= table[:, worse]
            kept[:, worse] &= ~beaten
    return kept


def _front(points: Floats) -> Bools:
    """Return which points no other beats or equals everywhere, shapes (tables, points), (points,).

    Of equals the first stays. More than two tables are left as they are: comparing all pairs
    costs more than it saves.
    """
    tables, count = points.shape
    if tables > 2:
        return np.ones(count, dtype=np.bool_)
    order = np.lexsort((np.arange(count), points[0], points[-1]))
    least = np.minimum.accumulate(points[0, order])
    kept = np.ones(count, dtype=np.bool_)
    kept[order[1:]] = points[0, order[1:]] < least[:-1]
    return kept


def is_redundant(model: Model, row: Row) -> bool:
    """Return whether even the dearest options keep a row, by exact sums."""
    dearest = np.where(model.allowed, row.cost, -np.inf).argmax(axis=1)
    return model.overrun(dearest, row) <= 0.0
