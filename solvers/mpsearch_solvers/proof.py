"""What a search knows so far: the best choice, the bound of what is done, and of what is open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.method import Outcome, Run, relative_gap
from mpsearch_solvers.presolve import Prepared
from mpsearch_solvers.problem import Floats, Ints

__all__ = ["NAME", "Proof"]

NAME = "decomposition"


@dataclass
class Proof:
    """The incumbent and the bounds of one solve; scaled units inside, original ones at its edges.

    Attributes:
        prepared: The problem.
        run: What is asked, and whom to tell.
        incumbent: The best choice so far.
        value: Its loss, in original units.
        closed: Least bound, scaled, of all that was closed.
        floor: Bound, scaled, on all that is open.
        multipliers: Prices of the rows, scaled.
    """

    prepared: Prepared
    run: Run
    incumbent: Ints | None = None
    value: float = math.inf
    closed: float = math.inf
    floor: float = -math.inf
    multipliers: Floats | None = None

    def offer(self, indices: Ints | None) -> bool:
        """Take a choice as incumbent if it is feasible and better.

        Args:
            indices: Option of every group; None: no choice.

        Returns:
            Whether it was.
        """
        model = self.prepared.model
        if indices is None or not model.is_feasible(indices):
            return False
        value = model.value(indices)
        if value < self.value:
            self.incumbent, self.value = indices, value
            self.tell("incumbent")
            return True
        return False

    @property
    def scaled_value(self) -> float:
        """Loss of the incumbent in scaled units; infinite where there is none."""
        return self.prepared.objective.convert(self.value)

    @property
    def tolerance(self) -> float:
        """What counts as equal in scaled units."""
        if self.incumbent is None:
            return 1e-12
        return 1e-12 * max(1.0, abs(self.scaled_value))

    @property
    def target(self) -> float:
        """The bound, in scaled units, that proves the gap asked for."""
        if self.incumbent is None:
            return math.inf
        goal = self.value - self.run.gap * abs(self.value) * (1 - 1e-9)
        return min(self.prepared.objective.convert(goal), self.scaled_value - self.tolerance)

    def reach(self, bound: float) -> float:
        """Tell how far above a bound a choice may lie and still be an improvement.

        Args:
            bound: On the loss of some choices, scaled.

        Returns:
            The excess, scaled.
        """
        if self.incumbent is None:
            return math.inf
        return max(self.scaled_value - bound, 0.0) + self.tolerance

    def suffices(self, bound: float) -> bool:
        """Tell whether a bound proves the gap asked for.

        Args:
            bound: Scaled.

        Returns:
            Whether it does; never without an incumbent.
        """
        return self.incumbent is not None and bound >= self.target

    def is_closed(self, bound: float) -> bool:
        """Tell whether nothing above a bound matters any more, and note the bound if so.

        Args:
            bound: On the loss of the choices of a node, scaled.

        Returns:
            Whether the node is done.
        """
        if not self.suffices(bound):
            return False
        self.close(bound)
        return True

    def close(self, bound: float) -> None:
        """Set choices aside, none of which loses less than a bound.

        Args:
            bound: Scaled.
        """
        self.closed = min(self.closed, bound)

    @property
    def bound(self) -> float | None:
        """The proven bound in original units."""
        scaled = min(self.closed, self.floor)
        if scaled == -math.inf:
            return None
        if self.incumbent is not None and scaled >= self.scaled_value - 2.0 * self.tolerance:
            return self.value
        return self.prepared.objective.restore(scaled) if scaled < math.inf else None

    def tell(self, stage: str) -> None:
        """Report incumbent and bound.

        Args:
            stage: What was just done.
        """
        value = self.value if self.incumbent is not None else None
        self.run.tell(NAME, self.bound, value, stage)

    def outcome(self) -> Outcome:
        """Sum up what is known.

        Returns:
            The incumbent with the bound that was proven, in original units.
        """
        prices = None
        if self.multipliers is not None:
            prices = np.zeros(len(self.prepared.model.rows))
            with np.errstate(over="ignore"):
                scale = self.prepared.objective.scale / self.prepared.scales
            prices[list(self.prepared.rows)] = self.multipliers * scale
        is_infeasible = self.incumbent is None and min(self.closed, self.floor) == math.inf
        bound = self.bound
        is_proven = self.incumbent is not None and bound is not None
        exhausted = is_infeasible or (
            is_proven and relative_gap(self.value, bound or 0.0) <= self.run.gap
        )
        return Outcome(self.incumbent, bound, exhausted, multipliers=prices)
