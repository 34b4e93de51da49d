"""Least worst-group loss: search over the threshold, each step a solve with options removed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpsearch_solvers.evaluation import pick
from mpsearch_solvers.method import Method, Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.narrowing import solve_narrowed
from mpsearch_solvers.problem import Floats, Ints


def member_losses(model: Model) -> Floats:
    """Return the largest single loss that a choice brings to any tied member."""
    problem = model.problem
    losses = np.full(model.shape, -np.inf)
    np.maximum.at(losses, model.member, np.take_along_axis(problem.loss, model.column, axis=1))
    return np.where(model.allowed, losses, np.inf)


def solve_worst_loss(model: Model, method: Method, run: Run) -> Outcome:
    """Minimise the largest loss of any group; among those, the sum.

    Bisection over the values the largest loss can take: a threshold removes the options above
    it, and the method says whether the rest can keep the limits.

    Args:
        model: The compiled problem, whose objective is the summed loss.
        method: What solves the restricted problems.
        run: Terms of the solve.

    Returns:
        The outcome; its bound is on the largest loss.
    """
    losses = member_losses(model)
    floor = float(losses.min(axis=1).max())
    values = np.unique(losses[model.allowed & (losses >= floor)])
    low, high = 0, len(values)  # below values[low] nothing fits; at values[high] something does
    best: Ints | None = None
    last = Outcome(None, None, exhausted=True)
    first = True
    while low < high and not run.is_over:
        middle = len(values) - 1 if first else (low + high) // 2
        within = model.restricted(losses <= values[middle])
        last = solve_narrowed(method, within, _step(run))
        if last.indices is not None:
            best = last.indices
            high = int(np.searchsorted(values, _worst(model, best)))
        elif last.exhausted:
            low = middle + 1
        else:
            break
        if first and last.indices is None:
            return last
        first = False
        run.tell(
            method.name,
            float(values[min(low, len(values) - 1)]),
            None if best is None else float(values[high]),
            "bisecting the worst loss",
        )
    if best is None:
        return replace(last, exhausted=False, bound=float(values[0]))
    bound = float(values[low])
    return Outcome(best, bound, low >= high, last.solver, None, last.note)


def _worst(model: Model, indices: Ints) -> float:
    return float(pick(model.problem.loss, model.expand(indices)).max())


def _step(run: Run) -> Run:
    """Return the terms of one inner solve: its own report would speak of another objective."""
    return replace(run, report=None)
