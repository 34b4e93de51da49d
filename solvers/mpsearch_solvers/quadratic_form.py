"""A model with pairwise interactions in scaled units, ready for search and bounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class Pairs:
    """Symmetric interactions of columns, as rows of a sparse matrix over flat places.

    The flat place of column `b` of group `g` is `g * width + b`.

    Attributes:
        start: Where each place's entries begin and end, shape (places + 1,).
        place: The partner of each entry.
        value: The scaled interaction of each entry; every pair is stored from both sides.
    """

    start: Ints
    place: Ints
    value: Floats

    def of(self, place: int) -> tuple[Ints, Floats]:
        """Return the partners of one flat place and what it costs to be chosen with them."""
        part = slice(int(self.start[place]), int(self.start[place + 1]))
        return self.place[part], self.value[part]


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    """Scaled objective `sum of linear + sum over unordered pairs`, with rows `usage <= room`.

    Attributes:
        linear: Shape (groups, options), least entry of every group 0; 0 where not allowed.
        pairs: The interactions.
        allowed: Which columns may be chosen.
        cost: Row costs above each group's least, scaled to at most 1; (rows, groups, options).
        room: What the rows leave above every group's least cost, rounding allowed for, (rows,).
        scale: Original objective units per scaled unit.
        offset: Original objective of the scaled value 0.
    """

    linear: Floats
    pairs: Pairs
    allowed: Bools
    cost: Floats
    room: Floats
    scale: float
    offset: float

    @property
    def shape(self) -> tuple[int, int]:
        """Groups and columns."""
        groups, width = self.linear.shape
        return groups, width

    def restore(self, value: float) -> float:
        """Return a scaled objective in original units."""
        return self.offset + self.scale * value

    def convert(self, value: float) -> float:
        """Return an original objective in scaled units."""
        return (value - self.offset) / self.scale

    def field(self, indices: Ints) -> Floats:
        """Return what each column would cost beside the rest of a choice, (groups, options)."""
        groups, width = self.shape
        total = self.linear.ravel().copy()
        if self.pairs.value.size:
            for place in (np.arange(groups) * width + indices).tolist():
                partners, values = self.pairs.of(place)
                total[partners] += values
        return total.reshape(groups, width)

    def value(self, indices: Ints) -> float:
        """Return the scaled objective of a choice."""
        groups = np.arange(self.shape[0])
        linear = self.linear[groups, indices]
        beside = self.field(indices)[groups, indices] - linear
        return math.fsum((linear + 0.5 * beside).tolist())

    def matrix(self) -> Floats:
        """Return the interactions as a dense symmetric matrix, shape (places, places)."""
        places = self.linear.size
        dense = np.zeros((places, places))
        rows = np.repeat(np.arange(places), np.diff(self.pairs.start))
        dense[rows, self.pairs.place] = self.pairs.value
        return dense


def compile_form(model: Model) -> QuadraticForm:
    """Bring a model to scaled form.

    The largest scaled coefficient is 1 whatever the unit of the losses, so that every tolerance
    means the same for losses of 1e-12 and of 1e12.

    Args:
        model: A model without a peak to minimise.

    Returns:
        The form. Rows that every allocation keeps are dropped.
    """
    least = model.objective.min(axis=1)
    linear = np.where(model.allowed, model.objective - least[:, None], 0.0)
    pairs = model.interactions
    losses = pairs.loss if pairs is not None else np.zeros(0)
    scale = max(float(linear.max(initial=0.0)), float(np.abs(losses).max(initial=0.0))) or 1.0
    cost, room = _rows(model)
    return QuadraticForm(
        linear=linear / scale,
        pairs=_pairs(model, scale),
        allowed=model.allowed,
        cost=cost,
        room=room,
        scale=scale,
        offset=math.fsum(least.tolist()),
    )


def _pairs(model: Model, scale: float) -> Pairs:
    groups, width = model.shape
    pairs = model.interactions
    if pairs is None:
        empty = np.zeros(0, dtype=np.intp)
        return Pairs(np.zeros(groups * width + 1, dtype=np.intp), empty, np.zeros(0))
    offered = model.allowed[pairs.groups, pairs.options].all(axis=1)
    places = (pairs.groups * width + pairs.options)[offered]
    loss = pairs.loss[offered] / scale
    rows = np.concatenate([places[:, 0], places[:, 1]])
    columns = np.concatenate([places[:, 1], places[:, 0]])
    order = np.lexsort((columns, rows))
    start = np.searchsorted(rows[order], np.arange(groups * width + 1))
    return Pairs(start, columns[order], np.concatenate([loss, loss])[order])


def _rows(model: Model) -> tuple[Floats, Floats]:
    costs, rooms = [], []
    for row in model.rows:
        if row.epigraph:
            continue
        least = np.where(model.allowed, row.cost, np.inf).min(axis=1)
        above = np.where(model.allowed, row.cost - least[:, None], 0.0)
        largest = float(above.max(initial=0.0)) or 1.0
        room = math.fsum([row.limit, *(-least).tolist()])
        # What subtracting the least may have rounded away; exact sums have the last word.
        room += 2.0**-50 * float(np.abs(row.cost).max(axis=1).sum())
        # A row nobody can exceed only slows things down; the margin leaves ties to math.fsum.
        if room < math.fsum(above.max(axis=1).tolist()) * (1 + 1e-12) + 1e-300 or room <= 0.0:
            costs.append(above / largest)
            rooms.append(room / largest)
    if not costs:
        return np.zeros((0, *model.shape)), np.zeros(0)
    return np.stack(costs), np.array(rooms)
