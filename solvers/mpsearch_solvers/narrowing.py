"""Proofs that hold where losses span many orders of magnitude.

Every exact method works in units of the largest loss that an option can add, and calls two values
equal when they differ by rounding in those units. One hopeless option of 1e12 would so hide
differences of 1 between all others. But an option that alone brings the objective above an
allocation already found is in no better one: without such options the largest loss that remains
is at most the objective's excess over its least, and the method proves its answer in that unit.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mpsearch_solvers.method import Method, Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Bools, Floats, Ints

# How much smaller the largest loss must get for another solve to be worth its time.
_WORTHWHILE = 16.0
# Each round divides the unit by at least that, and float64 spans 2**2098.
_ROUNDS = 600
_ROUNDING = 1e-9


def solve_narrowed(method: Method, model: Model, run: Run) -> Outcome:
    """Solve, then solve again without the options that the answer rules out, while that helps.

    Args:
        method: What solves the models.
        model: The model.
        run: Terms of the solve, all rounds together.

    Returns:
        The outcome. Where the time ended before a round that was due, its bound is lowered by
        the rounding of the last unit.
    """
    outcome = method.solve(model, run)
    for _ in range(_ROUNDS):
        if outcome.indices is None or outcome.bound is None or model.peak is not None:
            return outcome
        value = model.value(outcome.indices)
        unit = _unit(model)
        kept = _contenders(model, value)
        kept[np.arange(len(kept)), outcome.indices] = True
        narrowed = model.restricted(kept)
        if _unit(narrowed) == 0.0:
            # Nothing that is left adds any loss: all such allocations are equal.
            return replace(outcome, bound=value, exhausted=True)
        if not unit > _WORTHWHILE * _unit(narrowed):
            return outcome
        if run.is_over:
            lower = outcome.bound - _ROUNDING * unit
            return replace(outcome, bound=lower, exhausted=False)
        terms = replace(run, start=outcome.indices)
        outcome = _better(model, outcome, method.solve(narrowed, terms))
        model = narrowed
    return outcome


def _shifted(model: Model) -> tuple[Floats, float]:
    """Return what every option adds to the least objective, and that least."""
    least = model.objective.min(axis=1)
    pairs = model.interactions
    gains = [] if pairs is None else np.minimum(pairs.loss, 0.0).tolist()
    shifted: Floats = np.where(model.allowed, model.objective - least[:, None], np.inf)
    return shifted, math.fsum([*least.tolist(), *gains])


def _unit(model: Model) -> float:
    """Return the largest loss that a choice can add, which methods scale by."""
    shifted, _ = _shifted(model)
    pairs = model.interactions
    largest = 0.0 if pairs is None else float(np.abs(pairs.loss).max(initial=0.0))
    return max(largest, float(shifted[model.allowed].max()))


def _contenders(model: Model, value: float) -> Bools:
    """Return the options that an allocation better than a value can contain."""
    shifted, least = _shifted(model)
    finite = np.where(model.allowed, np.abs(model.objective), 0.0)
    # What the sums may lose to rounding; the dearest option of a group is not in its rest.
    rest = np.abs(model.objective.min(axis=1)).sum() + abs(value)
    contenders: Bools = shifted <= value - least + 1e-14 * (rest + finite)
    return contenders


def _better(model: Model, first: Outcome, second: Outcome) -> Outcome:
    """Return the better answer of two rounds, with the bound that the second proves.

    What the second did not look at is no better than the first's answer.
    """
    assert first.indices is not None
    if second.indices is None:
        chosen, value = first.indices, model.value(first.indices)
        if second.exhausted:
            return replace(second, indices=chosen, bound=value)
    else:
        chosen, value = _least_of(model, first.indices, second.indices)
    bound = None if second.bound is None else min(second.bound, value)
    return replace(second, indices=chosen, bound=bound)


def _least_of(model: Model, first: Ints, second: Ints) -> tuple[Ints, float]:
    values = (model.value(first), model.value(second))
    return (first, values[0]) if values[0] < values[1] else (second, values[1])
