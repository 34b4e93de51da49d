"""Descent by single changes and by swaps of two groups, with restarts from shaken incumbents."""

from __future__ import annotations

import math

import numpy as np

from mpsearch_solvers.method import Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Bools, Floats, Ints
from mpsearch_solvers.quadratic_form import QuadraticForm

# Improvements below this (scaled units) are rounding, and would let the descent run in circles.
_STEP = 1e-13
# Slack of the running row sums; `Model.is_feasible` has the last word on every move.
_SLACK = 1e-9


class Descent:
    """An allocation that walks downhill through feasible allocations."""

    def __init__(self, model: Model, form: QuadraticForm, indices: Ints) -> None:
        """Begin at a feasible choice of model columns, shape (groups,)."""
        self.model = model
        self.form = form
        self.groups = np.arange(form.shape[0])
        self.restart(indices)

    def restart(self, indices: Ints) -> None:
        """Put the walk at a feasible choice."""
        self.indices = indices.copy()
        self.field = self.form.field(self.indices)
        self.usage: Floats = self.form.cost[:, self.groups, self.indices].sum(axis=1)

    def fits(self, groups: Ints) -> Bools:
        """Return which columns of some groups the rows allow as a single change."""
        cost = self.form.cost[:, groups]
        now = self.form.cost[:, groups, self.indices[groups]]
        after = self.usage[:, None, None] + cost - now[:, :, None]
        keeps = after <= self.form.room[:, None, None] + _SLACK
        within: Bools = np.logical_and(keeps.all(axis=0), self.form.allowed[groups])
        return within

    def gains(self) -> Floats:
        """Return the change of objective of every single change, (groups, options)."""
        now = self.field[self.groups, self.indices]
        change: Floats = np.where(self.form.allowed, self.field - now[:, None], np.inf)
        return change

    def move(self, changes: list[tuple[int, int]]) -> bool:
        """Change some groups; undo it and return False if a limit breaks by exact sums."""
        old = self.indices.copy()
        for group, column in changes:
            self.indices[group] = column
        if not self.model.is_feasible(self.indices):
            self.indices = old
            return False
        width = self.form.shape[1]
        field = self.field.reshape(-1)
        for group, column in changes:
            for place, sign in ((old[group], -1.0), (column, 1.0)):
                partners, values = self.form.pairs.of(group * width + int(place))
                field[partners] += sign * values
            self.usage += self.form.cost[:, group, column] - self.form.cost[:, group, old[group]]
        return True

    def settle(self, run: Run, rng: np.random.Generator) -> None:
        """Descend until no single change and no swap of two groups improves."""
        while not run.is_over:
            if self._descend_singly():
                continue
            if not self._swap_any(run, rng):
                return

    def _descend_singly(self) -> bool:
        change = np.where(self.fits(self.groups), self.gains(), np.inf)
        order = np.argsort(change.min(axis=1), kind="stable")
        for group in order.tolist():
            column = int(change[group].argmin())
            if change[group, column] >= -_STEP:
                return False
            if self.move([(group, column)]):
                return True
        return False

    def _swap_any(self, run: Run, rng: np.random.Generator) -> bool:
        for group in rng.permutation(self.groups).tolist():
            if run.is_over:
                return False
            change = self._swaps(group)
            best = int(change.argmin())
            if change.flat[best] >= -_STEP:
                continue
            column, partner, other = (int(v) for v in np.unravel_index(best, change.shape))
            if self.move([(group, column), (partner, other)]):
                return True
        return False

    def _swaps(self, group: int) -> Floats:
        """Return the change of every swap with one group: (its column, partner, column)."""
        groups, width = self.form.shape
        flat = np.zeros((width, groups * width))
        for column in range(width):
            partners, values = self.form.pairs.of(group * width + column)
            flat[column, partners] = values
        block: Floats = flat.reshape(width, groups, width)
        block -= block[:, self.groups, self.indices][:, :, None]
        block -= block[self.indices[group]].copy()
        gains = self.gains()
        change: Floats = gains[group][:, None, None] + gains[None] + block
        cost, now = self.form.cost, self.form.cost[:, self.groups, self.indices]
        mine = cost[:, group] - now[:, group, None]
        others = cost - now[:, :, None]
        left = self.form.room - self.usage + _SLACK
        for own, other, room in zip(mine, others, left, strict=True):
            change[own[:, None, None] + other[None] > room] = np.inf
        change[:, group] = np.inf
        change[self.indices[group]] = np.inf
        return change

    def shake(self, rng: np.random.Generator, strength: int) -> None:
        """Make some random single changes that keep the limits."""
        count = min(strength, len(self.groups))
        for group in rng.choice(self.groups, size=count, replace=False).tolist():
            columns = np.flatnonzero(self.fits(np.array([group]))[0])
            if columns.size:
                self.move([(group, int(rng.choice(columns)))])


def search(model: Model, form: QuadraticForm, start: Ints, run: Run, rounds: int) -> Ints:
    """Improve a feasible choice by iterated local search.

    Lourenço, Martin and Stützle, "Iterated Local Search" (2003): shake the incumbent, descend,
    keep the result if it is better.

    Args:
        model: The model.
        form: Its scaled form.
        start: A feasible choice, shape (groups,).
        run: Stops the search, gives the seed.
        rounds: Shakes without improvement after which the search ends.

    Returns:
        The best choice found, feasible.
    """
    rng = np.random.default_rng(run.seed)
    walk = Descent(model, form, start)
    walk.settle(run, rng)
    best, value = walk.indices.copy(), form.value(walk.indices)
    idle = 0
    while idle < rounds and not run.is_over:
        walk.restart(best)
        walk.shake(rng, 2 + int(rng.integers(2 + math.isqrt(len(best)))))
        walk.settle(run, rng)
        found = form.value(walk.indices)
        idle += 1
        if found < value - _STEP:
            best, value, idle = walk.indices.copy(), found, 0
    return best
