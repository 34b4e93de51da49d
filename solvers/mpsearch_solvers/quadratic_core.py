"""What remains to decide once options that no better allocation can use are gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.method import Run
from mpsearch_solvers.problem import Bools, Floats, Ints
from mpsearch_solvers.quadratic_bound import Bound, Convex, Part, improve
from mpsearch_solvers.quadratic_convex import first_factor, flat_places

_ROUNDS = 12
_STEPS = 300


@dataclass(frozen=True, eq=False)
class Core:
    """A dense quadratic problem over the groups that are still open.

    Attributes:
        groups: The open groups, in the order they are decided, shape (open,).
        choice: Column of every group of the whole form; meaningful where a group is not open.
        constant: Scaled objective of the settled groups.
        part: Linear objective beside the settled groups, menus, costs and room left.
        matrix: Interactions between open groups, shape (open * options, open * options).
    """

    groups: Ints
    choice: Ints
    constant: float
    part: Part
    matrix: Floats

    @property
    def width(self) -> int:
        """Columns per group."""
        return int(self.part.linear.shape[1])

    def settle(self, allowed: Bools) -> Core:
        """Remove options, and groups that are left with one.

        Args:
            allowed: Which columns remain, shape (open, options); at least one per group.

        Returns:
            The smaller core.
        """
        done = allowed.sum(axis=1) == 1
        column = allowed.argmax(axis=1)
        places = np.flatnonzero(done) * self.width + column[done]
        beside = self.matrix[places].sum(axis=0).reshape(allowed.shape)
        linear = self.part.linear
        own = linear[done, column[done]].sum() + 0.5 * beside[done, column[done]].sum()
        kept = np.flatnonzero(~done)
        flat = flat_places(kept, self.width)
        choice = self.choice.copy()
        choice[self.groups[done]] = column[done]
        part = Part(
            linear=np.where(allowed, linear + beside, 0.0)[kept],
            allowed=allowed[kept],
            cost=np.where(allowed, self.part.cost, 0.0)[:, kept],
            room=self.part.room - self.part.cost[:, done, column[done]].sum(axis=1),
        )
        return Core(
            groups=self.groups[kept],
            choice=choice,
            constant=self.constant + float(own),
            part=part,
            matrix=_masked(self.matrix[np.ix_(flat, flat)], allowed[kept]),
        )

    def reorder(self, order: Ints) -> Core:
        """Return the core with its groups in another order."""
        flat = flat_places(order, self.width)
        part = Part(
            self.part.linear[order],
            self.part.allowed[order],
            self.part.cost[:, order],
            self.part.room,
        )
        matrix = self.matrix[np.ix_(flat, flat)]
        return Core(self.groups[order], self.choice, self.constant, part, matrix)


def _masked(matrix: Floats, allowed: Bools) -> Floats:
    flat = allowed.ravel()
    masked: Floats = np.where(flat[:, None] & flat[None, :], matrix, 0.0)
    return masked


@dataclass(frozen=True, eq=False)
class Root:
    """The bound before branching.

    Attributes:
        core: What remains open.
        convex: The interactions made convex, in the core's order.
        bound: The bound on the core's part.
        value: The proven bound on the whole form, scaled.
    """

    core: Core
    convex: Convex
    bound: Bound
    value: float


def solve_root(core: Core, cutoff: float, run: Run) -> Root:
    """Bound a core, remove what the bound excludes, and repeat while that helps.

    Args:
        core: The core, with at least one open group.
        cutoff: Scaled objective at and above which an allocation is of no interest.
        run: Stops the improvement of the bound when its time is over.

    Returns:
        The last bound; its core may have no open group left.
    """
    floor = -np.inf
    while True:
        part, matrix = core.part, core.matrix
        target = cutoff - core.constant
        start = np.where(part.allowed, part.linear - part.linear.min(initial=0.0) + 1e-3, 0.0)
        convex = Convex.of(matrix, start.ravel(), part.allowed)
        even = part.allowed / part.allowed.sum(axis=1, keepdims=True)
        bound = convex.bound(part, target, even, np.zeros(len(part.room)), _STEPS)
        factor = first_factor(matrix.shape[0])
        convex, bound, _ = improve(convex, part, bound, target, factor, _ROUNDS, run)
        # Removed options only ever cost at least the cutoff, so the best bound of all rounds holds.
        floor = min(cutoff, max(floor, core.constant + bound.value))
        remaining = part.allowed & (bound.value + bound.reduced < target)
        open_before = int(part.allowed.sum())
        if not remaining.any(axis=1).all() or floor >= cutoff:
            return Root(core, convex, bound, cutoff)
        if int(remaining.sum()) > 0.9 * open_before:
            return Root(core, convex, bound, floor)
        core = core.settle(remaining)
        if not len(core.groups):
            return Root(core, convex, bound, floor)
