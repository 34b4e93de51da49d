"""Scores that need no data and no forward pass: statistics of the weights."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mpsearch.progress import Progress
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.second_order import squared_errors

__all__ = [
    "EntropyWeight",
    "FrobeniusNorm",
    "Kurtosis",
    "MaxToMean",
    "SpectralNorm",
    "Variance",
    "WeightStatistic",
    "histogram_entropy",
]

BINS = 256


class WeightStatistic(Estimator):
    """s(W_i) * ||Q(W_i) - W_i||² / ||W_i||²: a statistic times the relative error of quantization.

    A rule of thumb, not a prediction in units of the loss: nothing of what the layer does in the
    model enters.
    """

    scores_activations: ClassVar[bool] = False

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Layers and options; model and data are not run.

        Returns:
            Scores without randomness; `statistics` holds the statistic under the estimator's name.
        """
        values, norms = [], []
        for done, layer in enumerate(task.layers, 1):
            weight = task.quantizer.original(layer.name)
            values.append(self.statistic(weight.double()))
            norms.append(float(weight.double().square().sum()))
            task.on_progress(Progress("profile", done, len(task.layers), layer.name))
        size = np.array(norms)[:, None]
        moved = squared_errors(task)
        relative = np.divide(moved, size, out=np.zeros_like(moved), where=size > 0)
        score = np.array(values)[:, None] * relative
        names = [layer.name for layer in task.layers]
        return Scores(
            score,
            np.zeros_like(score),
            statistics={self.name: dict(zip(names, values, strict=True))},
        )

    @abstractmethod
    def statistic(self, weight: Tensor) -> float:
        """Compute the statistic of one weight.

        Args:
            weight: float64, output channels on axis 0.

        Returns:
            The statistic, finite for every finite weight.
        """


class Kurtosis(WeightStatistic):
    """E(w - μ)⁴ / σ⁴, 3 for normal weights: heavy tails stretch the grid. After KV-AdaQuant."""

    name: ClassVar[str] = "kurtosis"

    def statistic(self, weight: Tensor) -> float:
        """Compute the kurtosis; 0 where all weights are equal."""
        centred = weight - weight.mean()
        variance = float(centred.square().mean())
        return float(centred.pow(4).mean()) / variance**2 if variance > 0 else 0.0


class Variance(WeightStatistic):
    """E(w - μ)². After ARKV."""

    name: ClassVar[str] = "variance"

    def statistic(self, weight: Tensor) -> float:
        """Compute the variance."""
        return float((weight - weight.mean()).square().mean())


class MaxToMean(WeightStatistic):
    """max |w| / mean |w|, how far outliers stretch the grid. After "Beyond Outliers"."""

    name: ClassVar[str] = "max_to_mean"

    def statistic(self, weight: Tensor) -> float:
        """Compute the ratio; 0 where all weights are zero."""
        mean = float(weight.abs().mean())
        return float(weight.abs().max()) / mean if mean > 0 else 0.0


class FrobeniusNorm(WeightStatistic):
    """√Σw². After KV-AdaQuant."""

    name: ClassVar[str] = "frobenius_norm"

    def statistic(self, weight: Tensor) -> float:
        """Compute the norm."""
        return math.sqrt(float(weight.square().sum()))


class SpectralNorm(WeightStatistic):
    """Largest singular value of the weight as an output x input matrix. After KV-AdaQuant."""

    name: ClassVar[str] = "spectral_norm"

    def statistic(self, weight: Tensor) -> float:
        """Compute the norm."""
        matrix = weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(0)
        gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


class EntropyWeight(WeightStatistic):
    """Entropy of a 256-bin histogram of the weights, in bits. After QuantMCU."""

    name: ClassVar[str] = "entropy_weight"

    def statistic(self, weight: Tensor) -> float:
        """Compute the entropy."""
        return histogram_entropy(weight, float(weight.min()), float(weight.max()))


def histogram_entropy(values: Tensor, low: float, high: float) -> float:
    """Compute the entropy of a 256-bin histogram.

    Args:
        values: Numbers.
        low: Lower edge of the first bin.
        high: Upper edge of the last; values outside are not counted.

    Returns:
        Bits, 0 to 8; 0 where the range is empty.
    """
    if not high > low:
        return 0.0
    counts = torch.histc(values.detach().float().flatten(), BINS, low, high).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum())
