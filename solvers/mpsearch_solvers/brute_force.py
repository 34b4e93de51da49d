"""Every allocation, one by one: the reference that all other methods are tested against."""

from __future__ import annotations

import numpy as np

from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Floats, Ints

_MOST = 50_000_000
_BLOCK = 1 << 18


def count_choices(model: Model) -> int:
    """Return the number of allocations, budgets aside."""
    count = 1
    for options in model.allowed.sum(axis=1).tolist():
        count *= options
    return count


class BruteForce:
    """Enumerates all allocations in blocks; for at most 50 million of them."""

    name = "brute_force"

    def refusal(self, model: Model) -> str | None:
        """Return why the model is too large, or None."""
        count = count_choices(model)
        if count > _MOST:
            return f"it has {count:.3g} allocations; brute force takes at most {_MOST:.0e}"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Enumerate; the answer is optimal by the exact sums of the problem's numbers."""
        menus = [np.flatnonzero(row) for row in model.allowed]
        head, tail = _split(menus)
        block = _Block(model, tail, len(head))
        best: Ints | None = None
        value = np.inf
        for start in _product(head):
            if run.is_over:
                return Outcome(best, None, exhausted=False, note="stopped by the time limit")
            best, value = block.improve(np.array(start, dtype=np.intp), best, value)
            run.tell(self.name, None, None if best is None else value, "enumerating")
        return Outcome(best, None if best is None else value, exhausted=True)


def _split(menus: list[Ints]) -> tuple[list[Ints], list[Ints]]:
    """Split groups so that the tail's allocations fill at most one block."""
    size, cut = 1, len(menus)
    while cut > 0 and size * len(menus[cut - 1]) <= _BLOCK:
        cut -= 1
        size *= len(menus[cut])
    return menus[:cut], menus[cut:]


def _product(menus: list[Ints]) -> list[tuple[int, ...]]:
    """Return all combinations of the head's options; empty menus give one empty tuple."""
    combinations: list[tuple[int, ...]] = [()]
    for menu in menus:
        combinations = [(*head, option) for head in combinations for option in menu.tolist()]
    return combinations


class _Block:
    """All allocations of the tail groups, with sums prepared, to be joined with one head each."""

    def __init__(self, model: Model, menus: list[Ints], first: int) -> None:
        self.model = model
        self.first = first
        grids = np.meshgrid(*menus, indexing="ij") if menus else []
        self.choices: Ints = (
            np.stack([grid.ravel() for grid in grids], axis=1)
            if menus
            else np.zeros((1, 0), dtype=np.intp)
        )
        places = np.arange(first, first + len(menus))
        self.objective = self._sum(model.objective, places)
        self.rows = [self._sum(row.cost, places) for row in model.rows]
        # Sums in another order differ by rounding; within this slack math.fsum decides.
        self.slack = [
            1e-12 * (abs(row.limit) + float(np.abs(row.cost).sum())) for row in model.rows
        ]

    def _sum(self, table: Floats, places: Ints) -> Floats:
        total = np.zeros(len(self.choices))
        for column, place in enumerate(places.tolist()):
            total += table[place, self.choices[:, column]]
        return total

    def improve(self, head: Ints, best: Ints | None, value: float) -> tuple[Ints | None, float]:
        """Return the better of the incumbent and the best allocation that begins with a head."""
        places = np.arange(len(head))
        objective = self.objective + self.model.objective[places, head].sum()
        if self.model.peak is not None:
            objective = np.full(len(objective), -np.inf)
        inside = np.ones(len(objective), dtype=np.bool_)
        for row, tail, slack in zip(self.model.rows, self.rows, self.slack, strict=True):
            total = tail + row.cost[places, head].sum()
            if row.epigraph:
                objective = np.maximum(objective, total - row.limit)
            else:
                inside &= total <= row.limit + slack
        if self.model.interactions is not None:
            objective = objective + self._interactions(head)
        margin = 1e-12 * float(np.abs(np.where(self.model.allowed, self.model.objective, 0)).sum())
        candidates = np.flatnonzero(inside & (objective <= value + margin))
        order = candidates[np.argsort(objective[candidates], kind="stable")]
        floor = np.inf
        for place in order.tolist():
            if objective[place] > floor + 2 * margin:
                break
            indices = np.concatenate([head, self.choices[place]])
            if not self.model.is_feasible(indices):
                continue
            floor = min(floor, objective[place])
            exact = self.model.value(indices)
            if exact < value:
                best, value = indices, exact
        return best, value

    def _interactions(self, head: Ints) -> Floats:
        pairs = self.model.interactions
        assert pairs is not None
        total = np.zeros(len(self.choices))
        for groups, options, loss in zip(pairs.groups, pairs.options, pairs.loss, strict=True):
            hit = np.ones(len(self.choices), dtype=np.bool_)
            for group, option in zip(groups.tolist(), options.tolist(), strict=True):
                if group < self.first:
                    hit &= head[group] == option
                else:
                    hit &= self.choices[:, group - self.first] == option
            total += np.where(hit, loss, 0.0)
        return total
