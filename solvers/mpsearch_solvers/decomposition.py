"""Lagrangian decomposition: the method, its settings, and what it can solve."""

from __future__ import annotations

import numpy as np

from mpsearch_solvers.decomposition_search import NODES, Search, Settings
from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.presolve import Presolve, prepare
from mpsearch_solvers.proof import NAME

# Partial choices per half: small lists first, since most problems need no more.
_SIZES = (2_000, 30_000, 300_000)
_NODE_SIZES = (2_000, 60_000)


class Decomposition:
    """The default for one-hot knapsacks of any size."""

    name = NAME

    def __init__(
        self,
        presolve: Presolve | None = None,
        sizes: tuple[int, ...] = _SIZES,
        node_sizes: tuple[int, ...] = _NODE_SIZES,
        nodes: int = NODES,
    ) -> None:
        """Choose the steps.

        Args:
            presolve: Which presolve steps to take; all by default.
            sizes: Partial choices per half to list at the root, in turn, before branching.
            node_sizes: The same at every other node.
            nodes: Branch to so many nodes before a MIP solver gets the core.
        """
        self.presolve = presolve or Presolve()
        self.settings = Settings(sizes, node_sizes, nodes, self.presolve)

    def refusal(self, model: Model) -> str | None:
        """Return why groups do not separate, or None."""
        if model.interactions is not None:
            return "pairs of choices interact; use quadratic, brute_force or local_search"
        if model.peak is not None:
            return "a peak is minimised; use ilp or brute_force"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Bound, list, and prove."""
        for row in model.rows:
            cheapest = np.where(model.allowed, row.cost, np.inf).argmin(axis=1)
            if model.overrun(cheapest, row) > 0.0:
                return Outcome(None, None, exhausted=True)
        if not model.allowed.any(axis=1).all():
            return Outcome(None, None, exhausted=True)
        return Search(prepare(model, self.presolve), run, self.settings).solve()
