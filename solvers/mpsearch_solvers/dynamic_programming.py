"""Exact dynamic programming for one budget: Pareto-optimal partial choices, group by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch_solvers.balancing import balance, useful_options
from mpsearch_solvers.core import Core, Swaps
from mpsearch_solvers.lagrangian import maximise
from mpsearch_solvers.listing import halve
from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.presolve import Prepared, Presolve, prepare
from mpsearch_solvers.problem import Bools, Floats, Ints

_MOST_STATES = 8_000_000
_SWAPS_TO_ROUND = 2_000


@dataclass(frozen=True, eq=False)
class _Layer:
    """How the states after one group came about.

    Attributes:
        parent: State before the group, shape (states,).
        swap: Swap taken, -1 for none, shape (states,).
    """

    parent: NDArray[np.int32]
    swap: NDArray[np.int32]


class DynamicProgramming:
    """Keeps, after every group, the partial choices that no other beats in cost and loss.

    States are pruned by the Lagrangian bound (their excess over it must stay below that of the
    incumbent) and by dominance, so far fewer survive than the budget has steps.
    """

    name = "dp"

    def refusal(self, model: Model) -> str | None:
        """Return why the model is not a knapsack with one row, or None."""
        if model.interactions is not None:
            return "pairs of choices interact; use quadratic, brute_force or local_search"
        if model.peak is not None:
            return "a peak is minimised; use ilp or brute_force"
        binding = len(prepare(model, Presolve()).rows)
        if binding > 1:
            return f"{binding} limits can bind; dp takes one, decomposition any number"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Bound, then extend states group by group."""
        for row in model.rows:
            cheapest = np.where(model.allowed, row.cost, np.inf).argmin(axis=1)
            if model.overrun(cheapest, row) > 0.0:
                return Outcome(None, None, exhausted=True)
        if not model.allowed.any(axis=1).all():
            return Outcome(None, None, exhausted=True)
        prepared = prepare(model, Presolve())
        prices = np.zeros(len(model.rows))
        if not prepared.rows:
            indices = prepared.knapsack.loss.argmin(axis=1)
            return Outcome(indices, model.value(indices), exhausted=True, multipliers=prices)
        point, _ = maximise(prepared.knapsack, run, None, np.inf)
        with np.errstate(over="ignore"):
            scale = prepared.objective.scale / prepared.scales
        prices[list(prepared.rows)] = point.multipliers * scale
        return _Table(prepared, Core(prepared.knapsack, point), run, prices).solve()


class _Table:
    """The states of one solve."""

    def __init__(self, prepared: Prepared, core: Core, run: Run, prices: Floats) -> None:
        self.prepared = prepared
        self.core = core
        self.run = run
        self.prices = prices
        self.best = self._incumbent()

    def _incumbent(self) -> Ints:
        """Return the better of the rounded relaxation and the cheapest options."""
        model = self.prepared.model
        cost = model.rows[self.prepared.rows[0]].cost
        found = [np.where(model.allowed, cost, np.inf).argmin(axis=1)]
        rounded = balance(self.core, useful_options(self.core, _SWAPS_TO_ROUND))
        found += [one for one in (self.core.base, rounded) if model.is_feasible(one)]
        return min(found, key=model.value)

    def solve(self) -> Outcome:
        model = self.prepared.model
        lower = self.prepared.objective.restore(self.core.point.value)
        self.run.tell("dp", lower, model.value(self.best), "bounded")
        for merges_equal in (True, False):
            found, is_exact = self._sweep(merges_equal)
            if found is None:
                note = "stopped by the time limit or by the number of states"
                return Outcome(
                    self.best, lower, exhausted=False, note=note, multipliers=self.prices
                )
            if is_exact:
                break
        value = model.value(self.best)
        return Outcome(self.best, value, exhausted=True, multipliers=self.prices)

    def _reach(self) -> float:
        value = self.prepared.objective.convert(self.prepared.model.value(self.best))
        return value - self.core.point.value + 1e-12 * max(1.0, abs(value))

    def _sweep(self, merges_equal: bool) -> tuple[bool | None, bool]:
        """Extend states over all groups and take the best end state that fits.

        Returns:
            Whether the incumbent improved (None if given up), and whether no end state was
            passed over because its exact sum does not fit: then states of equal cost in float
            arithmetic may differ in truth, and they must not be merged.
        """
        reach = self._reach()
        swaps = self.core.swaps(reach)
        first, second = halve(swaps)
        excess, spent = np.zeros(1), np.zeros(1)
        layers: list[_Layer] = []
        for done, members in enumerate(_interleaved(first, second)):
            excess, spent, layer = self._extend(excess, spent, swaps, members, reach)
            kept = _undominated(excess, spent, self._price * self.core.rounding[0], merges_equal)
            excess, spent = excess[kept], spent[kept]
            layers.append(_Layer(layer.parent[kept], layer.swap[kept]))
            if self.run.is_over or len(excess) > _MOST_STATES:
                return None, False
            if done % 32 == 0:
                self.run.tell("dp", None, None, f"{len(excess)} states")
        return self._finish(excess, spent, swaps, layers, reach)

    @property
    def _price(self) -> float:
        """The multiplier, or 1 where the relaxation does not price the row."""
        price = float(self.core.point.multipliers[0])
        return price if price > 0.0 else 1.0

    def _extend(
        self, excess: Floats, spent: Floats, swaps: Swaps, members: Ints, reach: float
    ) -> tuple[Floats, Floats, _Layer]:
        excesses, spents = [excess], [spent]
        parents = [np.arange(len(excess), dtype=np.int32)]
        taken = [np.full(len(excess), -1, dtype=np.int32)]
        for swap in members.tolist():
            room = np.flatnonzero(excess < reach - swaps.excess[swap])
            excesses.append(excess[room] + swaps.excess[swap])
            spents.append(spent[room] + self._price * swaps.spent[0, swap])
            parents.append(room.astype(np.int32))
            taken.append(np.full(len(room), swap, dtype=np.int32))
        layer = _Layer(np.concatenate(parents), np.concatenate(taken))
        return np.concatenate(excesses), np.concatenate(spents), layer

    def _finish(
        self, excess: Floats, spent: Floats, swaps: Swaps, layers: list[_Layer], reach: float
    ) -> tuple[bool, bool]:
        spare = self._price * self.core.slack[0] - spent
        is_priced = self.core.point.multipliers[0] > 0.0
        total = excess + (np.maximum(spare, 0.0) if is_priced else 0.0)
        fits = (spare >= -self._price * self.core.rounding[0]) & (total < reach)
        ends = np.flatnonzero(fits)
        model = self.prepared.model
        is_exact = True
        for end in ends[np.argsort(total[ends], kind="stable")].tolist():
            indices = self._trace(end, swaps, layers)
            if model.is_feasible(indices):
                if model.value(indices) < model.value(self.best):
                    self.best = indices
                return True, is_exact
            is_exact = False
        return False, is_exact

    def _trace(self, state: int, swaps: Swaps, layers: list[_Layer]) -> Ints:
        indices = self.core.base.copy()
        for layer in reversed(layers):
            swap = int(layer.swap[state])
            if swap >= 0:
                indices[swaps.group[swap]] = swaps.column[swap]
            state = int(layer.parent[state])
        return indices


def _interleaved(first: list[Ints], second: list[Ints]) -> list[Ints]:
    """Return all groups, those whose cheapest swap is dearest first."""
    merged: list[Ints] = []
    for place, members in enumerate(first):
        merged.append(members)
        if place < len(second):
            merged.append(second[place])
    return merged


def _undominated(excess: Floats, spent: Floats, rounding: float, merges_equal: bool) -> Bools:
    """Return the states that no state of lower cost beats in loss.

    A state beats another when it spends less by more than rounding, or just as much, and loses
    no more. Loss is excess less priced spending.
    """
    loss = excess - spent
    order = np.lexsort((loss, spent))
    ordered, cost = loss[order], spent[order]
    lowest = np.minimum.accumulate(ordered)
    # The least loss among states that spend clearly less.
    clear = np.searchsorted(cost, cost - rounding, side="left")
    best_below = np.where(clear > 0, lowest[np.maximum(clear - 1, 0)], np.inf)
    alive = ordered < best_below
    if merges_equal:
        repeated = np.zeros(len(cost), dtype=np.bool_)
        repeated[1:] = cost[1:] == cost[:-1]
        alive &= ~repeated
    kept = np.zeros(len(loss), dtype=np.bool_)
    kept[order[alive]] = True
    return kept
