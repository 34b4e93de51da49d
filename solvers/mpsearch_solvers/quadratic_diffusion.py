"""A lower bound by moving loss between groups and pairs; any size, cheap, best where pairs are few.

Min-sum diffusion (Kovalevsky and Koval; Werner, "A linear programming approach to max-sum problem",
2007), all pairs at once: every group lends its loss to its pairs in equal shares, every pair gives
back half of what each side must pay at least. The objective of every allocation stays the same and
the sum of the least entries, a lower bound, never falls. Budgets are priced by multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.method import Run
from mpsearch_solvers.problem import Floats, Ints
from mpsearch_solvers.quadratic_bound import price_rows
from mpsearch_solvers.quadratic_form import QuadraticForm

_SWEEPS = 60
_PRICED = 6


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A proven bound and what it says about single options.

    Attributes:
        value: No allocation is below this, scaled.
        reduced: No allocation with this option is below `value + reduced`, (groups, options).
    """

    value: float
    reduced: Floats


def diffuse(form: QuadraticForm, run: Run) -> Diffusion:
    """Bound a form from below.

    Args:
        form: The scaled form.
        run: Ends the sweeps when its time is over.

    Returns:
        The best bound of all sweeps, scaled.
    """
    one, two, blocks = _blocks(form)
    groups = form.shape[0]
    degree = np.bincount(np.concatenate([one, two]), minlength=groups)
    share = 1.0 / np.maximum(degree, 1)
    plane = np.where(form.allowed, form.linear, np.inf)
    offered = form.allowed[one][:, :, None] & form.allowed[two][:, None, :]
    blocks = np.where(offered, blocks, np.inf)
    prices = np.zeros(len(form.room))
    best = Diffusion(-np.inf, np.zeros(form.shape))
    for sweep in range(_SWEEPS):
        if sweep % _PRICED == 0:
            free = plane - np.tensordot(prices, form.cost, axes=1)
            prices = price_rows(free, form.cost, form.room, prices)
            plane = free + np.tensordot(prices, form.cost, axes=1)
        least = blocks.min(axis=(1, 2)).sum() if len(one) else 0.0
        floor = plane.min(axis=1)
        bound = float(floor.sum() + least - prices @ form.room)
        if bound > best.value:
            best = Diffusion(bound, plane - floor[:, None])
        if not len(one) or run.is_over:
            break
        lent = np.where(form.allowed, plane * share[:, None], 0.0)
        blocks = blocks + lent[one][:, :, None] + lent[two][:, None, :]
        first, second = 0.5 * blocks.min(axis=2), 0.5 * blocks.min(axis=1)
        first = np.where(form.allowed[one], first, 0.0)
        second = np.where(form.allowed[two], second, 0.0)
        blocks = blocks - first[:, :, None] - second[:, None, :]
        plane = np.where(degree[:, None] > 0, np.where(form.allowed, 0.0, np.inf), plane)
        np.add.at(plane, one, first)
        np.add.at(plane, two, second)
    return best


def _blocks(form: QuadraticForm) -> tuple[Ints, Ints, Floats]:
    """Return the interacting pairs of groups and their (options, options) tables."""
    groups, width = form.shape
    pairs = form.pairs
    rows = np.repeat(np.arange(form.linear.size), np.diff(pairs.start))
    upper = rows < pairs.place
    rows, columns, values = rows[upper], pairs.place[upper], pairs.value[upper]
    keys, which = np.unique((rows // width) * groups + columns // width, return_inverse=True)
    blocks = np.zeros((len(keys), width, width))
    blocks[which, rows % width, columns % width] = values
    return keys // groups, keys % groups, blocks
