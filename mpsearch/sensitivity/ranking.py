"""Whether noisy scores rank the layers reliably, and how well two rankings agree."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["kendall", "spearman", "unsettled_share"]


def unsettled_share(score: NDArray[np.float64], stderr: NDArray[np.float64]) -> float:
    """Estimate the share of layer pairs whose order is wrong because of the scores' noise.

    A pair with difference d and standard error s of d is in the wrong order with probability
    Φ(-|d|/s), for normal errors that are independent between layers.

    Args:
        score: Scores, layers x options.
        stderr: Their standard errors.

    Returns:
        The expected share over all pairs within every option, 0 to 1/2; 0 with a single layer.
    """
    first, second = np.triu_indices(len(score), 1)
    if not len(first):
        return 0.0
    gap = np.abs(score[first] - score[second])
    noise = np.sqrt(stderr[first] ** 2 + stderr[second] ** 2)
    noisy = noise > 0
    if not noisy.any():
        return 0.0
    z = gap[noisy] / noise[noisy]
    wrong = sum(0.5 * math.erfc(value / math.sqrt(2)) for value in z)
    return wrong / gap.size


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Compute Spearman's rank correlation, ties at their mean rank.

    Args:
        one: Numbers.
        other: As many numbers.

    Returns:
        The correlation, -1 to 1; NaN when either side is constant.
    """
    x, y = _ranks(np.asarray(one, dtype=np.float64)), _ranks(np.asarray(other, dtype=np.float64))
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else math.nan


def kendall(one: ArrayLike, other: ArrayLike) -> float:
    """Compute Kendall's tau-b, the share of pairs in the same order less that in the other.

    Args:
        one: Numbers.
        other: As many numbers.

    Returns:
        The correlation, -1 to 1; NaN when either side is constant.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    first, second = np.triu_indices(len(x), 1)
    dx, dy = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    scale = math.sqrt(float(np.abs(dx).sum()) * float(np.abs(dy).sum()))
    return float(dx @ dy) / scale if scale else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: NDArray[np.float64] = last - (counts - 1) / 2
    return mean_rank[inverse]
