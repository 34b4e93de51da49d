"""Measured sensitivity: quantize one layer, run the data, read the loss."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mpsearch.losses import measure
from mpsearch.progress import Progress
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask

__all__ = ["MeasuredLoss"]


class MeasuredLoss(Estimator):
    """L(layer i at option b, others in float) - L(float), one layer at a time.

    Source: CalibTIP (Hubara et al. 2021, arXiv 2006.10518) and AdaQuant's integer program, which
    raise increases to a small positive floor; here that is a setting and off by default, because a
    negative measurement is information too.
    """

    name: ClassVar[str] = "measured_loss"
    scores_activations: ClassVar[bool] = True

    def __init__(self, floor: float | None = None) -> None:
        """Choose the floor.

        Args:
            floor: Raise every increase to at least this; None keeps what was measured.
        """
        self._floor = floor

    def score(self, task: ScoringTask) -> Scores:
        """Measure every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Measured increases; nothing is random, so the standard errors are 0.
        """
        reference = measure(task.model, task.data.batches(), task.loss).loss
        increase = np.zeros((len(task.layers), len(task.options)))
        total = increase.size
        for row, layer in enumerate(task.layers):
            for column, option in enumerate(task.options):
                if not (option.weight.is_float and option.activation.is_float):
                    with task.quantizer.options({layer.name: option}) as changed:
                        measured = measure(changed, task.data.batches(), task.loss)
                    increase[row, column] = measured.loss - reference
                done = row * len(task.options) + column + 1
                task.on_progress(Progress("profile", done, total, f"{layer.name} {option.name}"))
        if self._floor is not None:
            quantized = [not (o.weight.is_float and o.activation.is_float) for o in task.options]
            increase[:, quantized] = np.maximum(increase[:, quantized], self._floor)
        return Scores(increase, np.zeros_like(increase), float_loss=reference)
