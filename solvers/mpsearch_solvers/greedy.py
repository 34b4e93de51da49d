"""Start from the least loss and give up loss where a unit of overrun is cheapest to remove."""

from __future__ import annotations

import numpy as np

from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Floats, Ints

_ROUNDS = 8


class Greedy:
    """One pass of best-ratio moves; fast, feasible when it ends well, and proves nothing."""

    name = "greedy"

    def refusal(self, model: Model) -> str | None:
        """Return why the model does not suit, or None."""
        if model.interactions is not None:
            return "pairs of choices interact; use local_search"
        if model.peak is not None:
            return "a peak is minimised; use ilp or brute_force"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Repair the unconstrained optimum, then spend what is left on the best upgrades."""
        indices = model.objective.argmin(axis=1)
        weights = np.zeros(len(model.rows))
        # Mending one row may break another, so weights only grow and the rounds are counted.
        for _ in range(_ROUNDS * len(model.rows)):
            violated = _weights(model, indices)
            if run.is_over or not violated.any():
                break
            weights += violated
            if not _descend(model, indices, np.tensordot(weights, _costs(model), axes=1), run):
                break
        if not model.is_feasible(indices):
            return Outcome(None, None, exhausted=False, note="greedy found nothing feasible")
        _spend(model, indices, run)
        run.tell(self.name, None, model.value(indices), "greedy")
        return Outcome(indices, None, exhausted=False)


def _costs(model: Model) -> Floats:
    return np.stack([row.cost for row in model.rows])


def _weights(model: Model, indices: Ints) -> Floats:
    """Return, per row, its relative overrun per unit of cost; zero for rows that are kept."""
    overrun = np.array([max(0.0, model.overrun(indices, row)) for row in model.rows])
    spread = np.array([float(np.ptp(row.cost, axis=1).sum()) or 1.0 for row in model.rows])
    # Only the ratio of rows counts; the largest weight is kept finite where costs are tiny.
    relative = overrun / spread
    weights: Floats = relative * (spread.min(initial=np.inf) / spread)
    return weights


def _descend(model: Model, indices: Ints, pressure: Floats, run: Run) -> bool:
    """Take best-ratio moves until some violated row is kept; returns whether any was taken."""
    groups = np.arange(len(indices))
    costs = _costs(model)
    limits = np.array([row.limit for row in model.rows])
    usage = costs[:, groups, indices].sum(axis=1)
    violated = usage > limits
    target, ratio = _best_moves(model, indices, pressure, groups)
    moved = False
    while not run.is_over:
        group = int(ratio.argmax())
        if not ratio[group] > 0.0:
            return moved
        usage += costs[:, group, target[group]] - costs[:, group, indices[group]]
        indices[group] = target[group]
        moved = True
        if (violated & (usage <= limits)).any():
            return True
        one = np.array([group])
        target[one], ratio[one] = _best_moves(model, indices, pressure, one)
    return moved


def _best_moves(model: Model, indices: Ints, pressure: Floats, groups: Ints) -> tuple[Ints, Floats]:
    """Return for some groups the option that relieves most pressure per loss, and that ratio."""
    rows = np.arange(len(groups))
    relief = pressure[groups, indices[groups]][:, None] - pressure[groups]
    loss = model.objective[groups] - model.objective[groups, indices[groups]][:, None]
    useful = model.allowed[groups] & (relief > 0.0)
    floor = np.finfo(np.float64).tiny
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ratio = np.where(useful, relief / np.maximum(loss, floor), -1.0)
    best = ratio.argmax(axis=1)
    return best, ratio[rows, best]


def _spend(model: Model, indices: Ints, run: Run) -> None:
    """Take the upgrades that save most and still fit, until none does."""
    groups = np.arange(len(indices))
    costs = _costs(model) if model.rows else np.zeros((0, *model.shape))
    room = np.array([-model.overrun(indices, row) for row in model.rows])
    while not run.is_over:
        extra = costs - costs[:, groups, indices][:, :, None]
        gain = model.objective[groups, indices][:, None] - model.objective
        fits = (extra <= room[:, None, None]).all(axis=0) & (gain > 0.0)
        best = np.where(fits, gain, 0.0).argmax(axis=1)
        order = np.argsort(-np.where(fits, gain, 0.0)[groups, best], kind="stable")
        moved = False
        for group in order.tolist():
            step = extra[:, group, best[group]]
            if not fits[group, best[group]]:
                break
            if (step <= room).all():
                old = indices[group]
                indices[group] = best[group]
                if model.is_feasible(indices):
                    room = room - step
                    moved = True
                else:
                    indices[group] = old
        if not moved:
            return
