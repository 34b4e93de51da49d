"""Branch and bound over the open groups, depth first, in one fixed order.

After Buchheim, Caprara and Lodi, "An effective branch-and-bound algorithm for convex quadratic
integer programming" (2012): with a fixed order the costly part of the bound (the diagonal that
makes the interactions convex) belongs to a depth, not to a node, and is prepared once per depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.method import Run
from mpsearch_solvers.problem import Floats, Ints
from mpsearch_solvers.quadratic_bound import Bound, Convex, Part, improve
from mpsearch_solvers.quadratic_convex import first_factor
from mpsearch_solvers.quadratic_core import Core, Root

_TABLE = 8192
_STEPS = 48
_RENEW = 4
_TOLERANCE = 1e-9
_TELL = 256


@dataclass(frozen=True, eq=False)
class _Node:
    """A choice for the first groups of the order, and what is left below it."""

    chosen: tuple[int, ...]
    constant: float
    part: Part
    point: Floats
    multipliers: Floats
    bound: float


class _Table:
    """All choices of the last groups of the order, with their mutual interactions summed."""

    def __init__(self, core: Core) -> None:
        open_groups, width = core.part.linear.shape
        counts = core.part.allowed.sum(axis=1).tolist()
        size, self.depth = 1, open_groups
        while self.depth > 0 and size * counts[self.depth - 1] <= _TABLE:
            self.depth -= 1
            size *= counts[self.depth]
        menus = [np.flatnonzero(menu) for menu in core.part.allowed[self.depth :]]
        grids = np.meshgrid(*menus, indexing="ij") if menus else []
        self.choices: Ints = (
            np.stack([grid.ravel() for grid in grids], axis=1)
            if menus
            else np.zeros((1, 0), dtype=np.intp)
        )
        places = (np.arange(self.depth, open_groups) * width + self.choices).astype(np.intp)
        self.pairs = np.zeros(len(places))
        for one in range(places.shape[1]):
            for two in range(one):
                self.pairs += core.matrix[places[:, one], places[:, two]]

    def best(self, part: Part, cutoff: float) -> list[tuple[float, Ints]]:
        """Return the choices below the cutoff that keep the rows, best first."""
        columns = np.arange(self.choices.shape[1])
        linear = np.where(part.allowed, part.linear, np.inf)
        value = self.pairs + linear[columns, self.choices].sum(axis=1)
        good = np.flatnonzero(value < cutoff)
        for cost, room in zip(part.cost, part.room.tolist(), strict=True):
            spent = cost[columns, self.choices[good]].sum(axis=1)
            good = good[spent <= room + _TOLERANCE]
        order = good[np.argsort(value[good], kind="stable")]
        return [(float(value[at]), self.choices[at]) for at in order.tolist()]


class Branching:
    """The search below a root bound."""

    def __init__(
        self,
        root: Root,
        accept: Callable[[Ints], float | None],
        cutoff: float,
        run: Run,
        nodes: int,
    ) -> None:
        """Set up a search.

        Args:
            root: The root bound; its core must have an open group.
            accept: Called with a whole choice that looks better than the cutoff; returns the new
                cutoff, or None if the choice breaks a limit by exact sums.
            cutoff: Scaled objective at and above which nothing is of interest.
            run: When to stop.
            nodes: Most nodes to bound.
        """
        strength = _strength(root.core, root.bound)
        order = np.argsort(-strength, kind="stable")
        self.core = root.core.reorder(order)
        flat = (order[:, None] * self.core.width + np.arange(self.core.width)).ravel()
        whole = Convex(self.core.matrix, root.convex.diagonal[flat], root.convex.step)
        self.depths: list[Convex] = [whole]
        self.table = _Table(self.core)
        self.accept = accept
        self.cutoff = cutoff
        self.run = run
        self.nodes = nodes
        self.visited = 0
        # Everything cut off had a bound at or above the cutoff of its time.
        self.floor = np.inf
        bound = root.bound
        self.stack = [
            _Node((), self.core.constant, self.core.part, bound.point[order], bound.multipliers,
                  root.value)
        ]  # fmt: skip

    @property
    def lower(self) -> float:
        """The proven bound so far, scaled; options removed cost the cutoff, perhaps no more."""
        waiting = min((node.bound for node in self.stack), default=np.inf)
        return min(self.floor, self.cutoff, waiting)

    def explore(self, tell: Callable[[float], None]) -> bool:
        """Search until done, out of time or out of nodes; returns whether it is done."""
        while self.stack:
            if self.visited >= self.nodes or self.run.is_over:
                return False
            node = self.stack.pop()
            if node.bound >= self.cutoff:
                self.floor = min(self.floor, node.bound)
                continue
            self._visit(node)
            self.visited += 1
            if self.visited % _TELL == 0:
                tell(self.lower)
        return True

    def _visit(self, node: _Node) -> None:
        part = node.part
        least = np.where(part.allowed, part.cost, np.inf).min(axis=2)
        spare = part.room - least.sum(axis=1) + _TOLERANCE
        if (spare < 0.0).any():
            return
        over = (part.cost - least[:, :, None] > spare[:, None, None]).any(axis=0)
        part = Part(part.linear, part.allowed & ~over, part.cost, part.room)
        if len(node.chosen) >= self.table.depth:
            self._finish(node, part)
            return
        target = self.cutoff - node.constant
        convex = self._convex(len(node.chosen), node, part)
        bound = convex.bound(part, target, node.point, node.multipliers, _STEPS)
        value = max(node.bound, node.constant + bound.value)
        if value >= self.cutoff:
            self.floor = min(self.floor, value)
            return
        remaining = part.allowed & (bound.value + bound.reduced < target)
        if (remaining != part.allowed).any():
            self.floor = min(self.floor, self.cutoff)
            if not remaining.any(axis=1).all():
                return
        self._branch(node, Part(part.linear, remaining, part.cost, part.room), bound, value)

    def _branch(self, node: _Node, part: Part, bound: Bound, value: float) -> None:
        """Push a child for every option of the next group, the most promising last."""
        width = self.core.width
        at = len(node.chosen)
        menu = np.flatnonzero(part.allowed[0])
        order = menu[np.argsort(-bound.reduced[0, menu], kind="stable")]
        for column in order.tolist():
            beside = self.core.matrix[at * width + column, (at + 1) * width :]
            below = Part(
                part.linear[1:] + beside.reshape(-1, width),
                part.allowed[1:],
                part.cost[:, 1:],
                part.room - part.cost[:, 0, column],
            )
            self.stack.append(
                _Node(
                    (*node.chosen, column),
                    node.constant + float(part.linear[0, column]),
                    below,
                    bound.point[1:],
                    bound.multipliers,
                    max(value, node.constant + bound.value + float(bound.reduced[0, column])),
                )
            )

    def _convex(self, depth: int, node: _Node, part: Part) -> Convex:
        """Return the convex interactions of a depth, prepared on the first visit."""
        while len(self.depths) <= depth:
            here = self.depths[-1].tail(self.core.width)
            if len(self.depths) == depth and depth % _RENEW == 0:
                menus = Part(part.linear, self.core.part.allowed[depth:], part.cost, part.room)
                here = self._renew(here, menus, node)
            self.depths.append(here)
        return self.depths[depth]

    def _renew(self, convex: Convex, part: Part, node: _Node) -> Convex:
        target = self.cutoff - node.constant
        factor = first_factor(convex.matrix.shape[0])
        convex = Convex.of(convex.matrix, convex.diagonal, part.allowed)
        bound = convex.bound(part, target, node.point, node.multipliers, _STEPS)
        return improve(convex, part, bound, np.inf, factor, 3, self.run)[0]

    def _finish(self, node: _Node, part: Part) -> None:
        target = self.cutoff - node.constant
        for value, tail in self.table.best(part, target):
            choice = self.core.choice.copy()
            choice[self.core.groups] = [*node.chosen, *tail.tolist()]
            cutoff = self.accept(choice)
            if cutoff is not None:
                self.floor = min(self.floor, node.constant + value)
                self.cutoff = min(self.cutoff, cutoff)
                return
        self.floor = min(self.floor, self.cutoff)


def _strength(core: Core, bound: Bound) -> Floats:
    """Return how much deciding a group moves the rest; the strongest are decided first."""
    groups, width = core.part.linear.shape
    blocks = core.matrix.reshape(groups, width, groups, width)
    reach = (blocks.max(axis=1) - blocks.min(axis=1)).max(axis=2).sum(axis=1)
    finite = np.where(core.part.allowed, bound.reduced, 0.0)
    strength: Floats = reach + finite.max(axis=1)
    return strength
