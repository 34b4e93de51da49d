"""Rounding the relaxation of a large knapsack: single swaps until the limits are used up.

The minimising choice of the dual misses the limits by what a few large groups spend. Swaps that
cost little excess for the spending they move bring it back; what is left is small enough for the
lists of `meeting.py`.
"""

from __future__ import annotations

import numpy as np

from mpsearch_solvers.core import Core
from mpsearch_solvers.problem import Bools, Floats, Ints

_STEPS = 400
_OVERRUN_WEIGHTS = (2.0, 20.0, 1e4)


def useful_options(core: Core, count: int) -> Bools:
    """Return the options worth rounding with: cheap ones, and cheap ones for their weight.

    Args:
        core: The dual's best point.
        count: How many swaps of either kind.

    Returns:
        The options, base options included, shape (groups, options).
    """
    kept = core.kept(0.0)
    cost = core.knapsack.cost
    base = np.take_along_axis(cost, core.base[None, :, None], axis=2)
    moved = np.tensordot(core.point.multipliers, np.abs(cost - base), axes=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weighed = np.where(moved > 0.0, core.excess / moved, np.inf)
    for measure in (core.excess, weighed):
        others = np.where(kept, np.inf, measure)
        place = min(count, others.size - 1)
        most = np.partition(others.ravel(), place)[place]
        kept = kept | ((others <= most) & np.isfinite(others))
    return kept


def balance(core: Core, options: Bools) -> Ints:
    """Return a choice near the limits, reached from the base by best single swaps.

    The score of a choice is its excess over the dual bound: reduced losses plus priced slack,
    with overruns weighed ever more heavily. It may end over a limit; the caller checks.

    Args:
        core: The dual's best point.
        options: Options to use, shape (groups, options).

    Returns:
        One column per group.
    """
    group, column = np.nonzero(options & np.isfinite(core.excess))
    price = core.point.multipliers
    scale = np.where(price > 0.0, price, 1.0)
    cost = core.knapsack.cost
    excess = core.excess[group, column]
    spent = scale[:, None] * (cost[:, group, column] - cost[:, group, core.base[group]])
    indices = core.base.copy()
    now_excess = np.zeros(len(indices))
    now_spent = np.zeros((len(price), len(indices)))
    total, slack = 0.0, scale * core.slack
    weight = (price > 0.0).astype(np.float64)
    for overrun in _OVERRUN_WEIGHTS:
        for _ in range(_STEPS):
            score = _score(np.array([total]), slack[:, None], weight, overrun)[0]
            totals = total - now_excess[group] + excess
            slacks = slack[:, None] + now_spent[:, group] - spent
            scores = _score(totals, slacks, weight, overrun)
            best = int(scores.argmin())
            if not scores[best] < score * (1 - 1e-9):
                break
            place = group[best]
            total, slack = float(totals[best]), slacks[:, best]
            now_excess[place], now_spent[:, place] = excess[best], spent[:, best]
            indices[place] = column[best]
        if (slack >= 0.0).all():
            break
    return indices


def _score(excess: Floats, slack: Floats, weight: Floats, overrun: float) -> Floats:
    """Return excess over the bound, shape (choices,), for slacks of shape (rows, choices)."""
    unused = weight @ np.maximum(slack, 0.0)
    over = np.maximum(-slack, 0.0).sum(axis=0)
    scores: Floats = excess + unused + overrun * over
    return scores
