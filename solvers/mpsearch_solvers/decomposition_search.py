"""The search of Lagrangian decomposition: bound, list, branch, hand over.

The dual is maximised by cutting planes. Every choice exceeds its bound by a sum of non-negative
parts (see `meeting.py`), so the optimum lies among the choices with small excess: those are
listed completely up to a threshold that grows until the asked gap is proven. What stays too large
to list goes to a MIP solver as the small core that reduced-cost fixing leaves.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace

import numpy as np

from mpsearch_solvers.balancing import balance, useful_options
from mpsearch_solvers.core import Core
from mpsearch_solvers.greedy import Greedy
from mpsearch_solvers.lagrangian import Knapsack
from mpsearch_solvers.listing import halve, list_half, list_pairs
from mpsearch_solvers.meeting import Meeting
from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.presolve import Prepared, Presolve
from mpsearch_solvers.problem import Floats, Ints
from mpsearch_solvers.proof import Proof
from mpsearch_solvers.tree import (
    Node,
    bound_part,
    branching_group,
    children,
    threshold_for,
    whole_part,
)

# Counts before merging: where equal spending merges to short lists, far larger ones are tried.
_MERGED_SIZES = (10**7, 10**10, 10**14, 10**20, 10**30)
# With more rows that bind, lists stay short of every target and a MIP solver does better.
_MANY_ROWS = 8
# After so many nodes, the part of the way to the target that the bound must have come.
_PROGRESS = {100: 0.1, 300: 0.25, 1_000: 0.5}
_DIVE_SWAPS = 3_000
_PATIENCE = 4
_POLISHES = 6
_POLISH_SWAPS = 400
_PAIRS = 3e6

NODES = 3_000
"""Nodes to branch to by default; a caller who asks for more wants no MIP solver before that."""


@dataclass(frozen=True)
class Settings:
    """How far a search goes before it takes the next step.

    Attributes:
        sizes: Partial choices per half to list at the root, in turn, before branching.
        node_sizes: The same at every other node.
        nodes: Branch to so many nodes before a MIP solver gets the core.
        presolve: Which presolve steps are taken.
    """

    sizes: tuple[int, ...]
    node_sizes: tuple[int, ...]
    nodes: int
    presolve: Presolve


@dataclass
class Search:
    """The steps of one solve, in scaled units."""

    prepared: Prepared
    run: Run
    settings: Settings
    proof: Proof = field(init=False)
    listed: int = 0  # length of the longer list last made

    def __post_init__(self) -> None:
        self.proof = Proof(self.prepared, self.run)

    def solve(self) -> Outcome:
        """Bound, list and prove.

        Returns:
            The incumbent with the bound that was proven.
        """
        knapsack = self.prepared.knapsack
        self.proof.offer(self.run.start)
        if not self.prepared.rows:
            self.proof.offer(knapsack.loss.argmin(axis=1))
            self.proof.multipliers = np.zeros(0)
            self.proof.floor = math.inf
            return self.proof.outcome()
        root = self._root(knapsack)
        if root is None:
            self.proof.floor = math.inf
            return self.proof.outcome()
        self._round(root)
        if root.point is None or self.proof.is_closed(root.bound):
            self.proof.closed = root.bound
            return self.proof.outcome()
        self._balance(root)
        self._dive(root)
        return self._grow(root)

    def _balance(self, root: Node) -> None:
        """Round the relaxation by single swaps, then by a short list around the result."""
        core = root.core
        assert root.point is not None
        indices = balance(core, useful_options(core, _DIVE_SWAPS))
        self.proof.offer(root.part.whole(indices))
        if self.proof.suffices(root.bound):
            return
        for _ in range(_POLISHES):
            if self.run.is_over:
                return
            better = self._polish(root, Core(core.knapsack, root.point, indices))
            if better is None or self.proof.suffices(root.bound):
                return
            indices = better

    def _polish(self, root: Node, core: Core) -> Ints | None:
        """Return the best choice up to four swaps away from a core's base, if it is better."""
        reach = self.proof.scaled_value - root.bound - core.start - self.proof.tolerance
        swaps = core.useful_swaps(reach, _POLISH_SWAPS)
        groups = halve(swaps)
        halves = (list_pairs(swaps, groups[0]), list_pairs(swaps, groups[1]))
        spent = (halves[0].spent, halves[1].spent)
        meeting = self._meeting(root, core, min(reach, _affordable(core, spent, 0.0)))
        meeting.match(swaps, groups, halves)
        if meeting.indices is None:
            return None
        self.proof.offer(root.part.whole(meeting.indices))
        return meeting.indices

    def _dive(self, root: Node) -> None:
        """Look for a good incumbent among the cheapest swaps; proves nothing.

        Deciding the most torn group and balancing the others anew spreads the rounding of a
        large group over many small ones, which a list of a few swaps cannot.
        """
        assert root.point is not None
        part = root.part.restricted(useful_options(root.core, _DIVE_SWAPS))
        node = bound_part(part, self.run, root.point.multipliers, math.inf, 1, reach=0.1)
        idle = -_PATIENCE * _PATIENCE
        while node is not None and node.point is not None and idle < _PATIENCE:
            if self.run.is_over or self.proof.suffices(root.bound):
                return
            before = self.proof.value
            self._round(node)
            self._look(node, node.core)
            # More patience before the first success: large groups are rounded first.
            idle = 0 if self.proof.value < before else idle + 1
            node = self._best_child(node)
        if node is not None and node.point is None:
            self.proof.offer(node.part.decided)

    def _look(self, node: Node, core: Core) -> None:
        """Offer the best choice of one short list."""
        needed = min(self.proof.reach(node.bound), self._needed(node)) - core.start
        threshold = threshold_for(core, self.settings.node_sizes[0], needed)
        meeting = self._meet(node, core, threshold) if threshold > 0.0 else None
        if meeting is not None and meeting.indices is not None:
            self.proof.offer(node.part.whole(meeting.indices))

    def _best_child(self, node: Node) -> Node | None:
        """Return the child of least bound among the options that the relaxation mixes."""
        group = branching_group(node)
        assert node.point is not None
        mixed = {int(indices[group]) for _, indices in node.point.mixture}
        everything = node.part.knapsack.allowed
        found = [
            bound_part(part, self.run, node.point.multipliers, math.inf, node.depth + 1, reach=0.1)
            for part in children(node, group, everything, sorted(mixed))
        ]
        return min((c for c in found if c is not None), key=lambda child: child.bound, default=None)

    def _root(self, knapsack: Knapsack) -> Node | None:
        start = self._start_prices()
        root = bound_part(whole_part(knapsack), self.run, start, math.inf, 0)
        if root is not None and root.point is not None:
            self.proof.floor = root.bound
            self.proof.multipliers = root.point.multipliers
            self.proof.tell("dual bound")
        return root

    def _start_prices(self) -> Floats | None:
        given = self.run.multipliers
        if given is None:
            return None
        rows = np.array(self.prepared.rows)
        prices: Floats = given[rows] * self.prepared.scales / self.prepared.objective.scale
        return prices

    def _round(self, node: Node) -> None:
        """Take the best feasible minimiser that the dual passed; at the root, else a greedy one."""
        part = node.part
        if node.point is None:
            self.proof.offer(part.decided)
            return
        slack = 1e-12 * np.maximum(1.0, np.abs(part.knapsack.limit))
        inside = [point for point in node.visited if (point.slope <= slack).all()]
        if inside:
            best = min(inside, key=lambda point: part.knapsack.total(point.indices))
            if part.loss + part.knapsack.total(best.indices) < self.proof.scaled_value:
                self.proof.offer(part.whole(best.indices))
        if self.proof.incumbent is None and node.depth == 0:
            found = Greedy().solve(self.prepared.model, replace(self.run, report=None))
            self.proof.offer(found.indices)

    def _grow(self, root: Node) -> Outcome:
        """Branch, best bound first, until every node is closed by its bound or by its list."""
        count = 0
        open_nodes: list[tuple[float, int, Node]] = [(root.bound, count, root)]
        while open_nodes:
            self.proof.floor = open_nodes[0][0]
            if self.run.is_over:
                return self.proof.outcome()
            if count > self.settings.nodes or self._is_stuck(count, root):
                return self._hand_over(root)
            _, _, node = heapq.heappop(open_nodes)
            if self.proof.is_closed(node.bound) or self._list(node):
                continue
            if self.run.remaining == 0.0:
                self.proof.close(node.bound)
                return self.proof.outcome()
            for child in self._branch(node):
                count += 1
                heapq.heappush(open_nodes, (child.bound, count, child))
            self.proof.tell("branching")
        self.proof.floor = math.inf
        return self.proof.outcome()

    def _is_stuck(self, count: int, root: Node) -> bool:
        """Return whether branching raises the bound too slowly to be worth going on."""
        assert root.point is not None
        if count and (root.point.multipliers > 0.0).sum() > _MANY_ROWS:
            return self.settings.nodes <= NODES
        asked = max((part for nodes, part in _PROGRESS.items() if count >= nodes), default=0.0)
        if not asked or self.settings.nodes > NODES:
            return False
        way = self.proof.target - root.bound
        return not self.proof.floor - root.bound >= asked * way

    def _branch(self, node: Node) -> list[Node]:
        assert node.point is not None
        group = branching_group(node)
        kept = node.core.kept(self.proof.reach(node.bound))
        nodes = []
        for part in children(node, group, kept, np.flatnonzero(kept[group]).tolist()):
            if self.run.is_over:
                self.proof.close(node.bound)
                break
            ceiling = self.proof.scaled_value if self.proof.incumbent is not None else math.inf
            child = bound_part(
                part, self.run, node.point.multipliers, ceiling, node.depth + 1, reach=0.1
            )
            if child is None:
                continue
            child = replace(child, bound=max(child.bound, node.bound))
            self._round(child)
            if not self.proof.is_closed(child.bound) and child.point is not None:
                nodes.append(child)
        return nodes

    def _needed(self, node: Node) -> float:
        """Return the excess up to which a node's list must be complete to close it."""
        if self.proof.incumbent is not None:
            return self.proof.target - node.bound
        # No choice loses more than this, so a list up to here holds every feasible one.
        knapsack = node.part.knapsack
        most = node.part.loss + float(np.where(knapsack.allowed, knapsack.loss, 0.0).max(1).sum())
        return (most - node.bound) * (1 + 1e-9) + 1e-9

    def _list(self, node: Node) -> bool:
        """List a node's choices by excess, to growing thresholds; returns whether it is closed."""
        core = node.core
        listed = 0.0
        sizes = self.settings.sizes if node.depth == 0 else self.settings.node_sizes
        for size in (*sizes, *_MERGED_SIZES):
            if size > sizes[-1] and self.listed > 0.05 * sizes[-1]:
                break
            needed = self._needed(node)
            # A short list costs nothing, so it proves all it can, not only the gap asked for.
            most = needed
            if size == sizes[0] and self.proof.incumbent is not None:
                most = max(needed, self.proof.reach(node.bound))
            threshold = threshold_for(core, size, most)
            if threshold <= listed:
                continue
            meeting = self._meet(node, core, threshold)
            if meeting is None:
                self.listed = sizes[-1]
                return False
            found = self.proof.offer(
                None if meeting.indices is None else node.part.whole(meeting.indices)
            )
            if meeting.is_complete:
                listed = threshold
                excess = meeting.best if found else math.inf
                if self.proof.is_closed(node.bound + min(threshold, excess)):
                    return True
                if self.proof.incumbent is None and threshold >= needed:
                    return True
            if node.depth == 0:
                self.proof.floor = max(self.proof.floor, node.bound + min(listed, meeting.best))
            self.proof.tell("listing")
            if self.run.is_over:
                return False
        return False

    def _meet(self, node: Node, core: Core, threshold: float) -> Meeting | None:
        swaps = core.swaps(threshold)
        groups = halve(swaps)
        for merges_equal in (True, False):
            halves = [
                list_half(
                    swaps, half, threshold, lambda: self.run.is_over, merges_equal=merges_equal
                )
                for half in groups
            ]
            first, second = halves
            if first is None or second is None:
                return None
            self.listed = max(len(first.excess), len(second.excess))
            reach = math.inf
            if self.proof.incumbent is not None:
                reach = self.proof.scaled_value - node.bound - core.start - self.proof.tolerance
            widest = _affordable(core, (first.spent, second.spent), threshold)
            meeting = self._meeting(node, core, min(reach, widest))
            meeting.match(swaps, groups, (first, second))
            # Spending equal in float sums may differ in exact ones, when a limit is that close.
            if not meeting.rejected:
                break
        return meeting

    def _meeting(self, node: Node, core: Core, threshold: float) -> Meeting:
        return Meeting(
            core,
            threshold,
            lambda indices: self.prepared.model.is_feasible(node.part.whole(indices)),
            lambda: self.run.is_over,
        )

    def _hand_over(self, root: Node) -> Outcome:
        """Give the core that reduced-cost fixing leaves to a MIP solver."""
        from mpsearch_solvers.ilp import Ilp

        model = self.prepared.model
        if self.settings.presolve.fixing and self.proof.incumbent is not None:
            model = model.restricted(root.core.kept(self.proof.reach(root.bound) * (1 + 1e-9)))
        answer = Ilp().solve(model, replace(self.run, start=None))
        self.proof.offer(answer.indices)
        if answer.bound is not None:
            self.proof.floor = max(self.proof.floor, self.prepared.objective.convert(answer.bound))
        elif answer.exhausted:
            self.proof.floor = math.inf
        note = f"a MIP solver finished the core. {answer.note}".strip()
        return replace(self.proof.outcome(), solver=answer.solver, note=note)


def _affordable(core: Core, spent: tuple[Floats, Floats], threshold: float) -> float:
    """Return how far beyond the threshold pairs can be looked for at bearable cost."""
    pairs = float(spent[0].shape[1]) * float(spent[1].shape[1])
    spreads = np.sort(
        [
            float(max(np.ptp(price * table[row]) for table in spent))
            for row, price in enumerate(core.point.multipliers)
            if price > 0.0
        ]
    )[::-1][:3]
    spreads = spreads[spreads > 0.0]
    if not len(spreads) or pairs <= _PAIRS:
        return math.inf
    # Pairs within reach r of the limits are about the share r^rows of all.
    share = float(np.prod(spreads)) * _PAIRS / pairs
    return max(threshold, math.pow(share, 1.0 / len(spreads)) / 2.0)
