"""Output-space sensitivity: how a layer's output error meets the loss gradient there."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError, ModelError
from mpsearch.sensitivity.output_curvature import Draw, class_axis
from mpsearch.sensitivity.output_terms import Wanted, output_terms
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask

__all__ = ["FisherOutput"]


class FisherOutput(Estimator):
    """mean_n Σ (∂l_n/∂Y_i)² (Y_i,q - Y_i)² over the elements of the layer's output Y_i.

    The diagonal of the Fisher matrix in the layer's output, weighting the output error of every
    option. l_n is one input's own loss, so that the score does not depend on the batch size. One
    backward pass that computes no weight gradient serves all options; each option costs one forward
    of the layer alone, and everything is dropped layer by layer as the backward pass goes.

    `labels="given"` takes the gradients of the loss with the data's targets (the empirical
    Fisher); `labels="model"` draws factors of the loss's second derivative instead, which needs no
    targets and is the Gauss-Newton matrix; `auto` takes the data's targets where the loss reads
    them.

    Source: BRECQ (Li et al. 2021, arXiv 2102.05426), equation 10; NVIDIA ModelOpt's `auto_quantize`
    gradient score.
    """

    name: ClassVar[str] = "fisher_output"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def __init__(
        self,
        labels: Literal["auto", "given", "model"] = "auto",
        draws: int = 4,
        draw: Draw = "signs",
    ) -> None:
        """Choose whose labels the gradients are of.

        Args:
            labels: `given`, `model`, or `auto`.
            draws: Backward passes when labels are the model's, at least 2.
            draw: How factors are drawn then, see `draw_factor`.

        Raises:
            ValueError: An unknown choice, or fewer than 2 draws.
        """
        if labels not in {"auto", "given", "model"}:
            raise ValueError(f"labels is 'auto', 'given' or 'model', not {labels!r}")
        if draw not in {"signs", "labels"}:
            raise ValueError(f"draw is 'signs' or 'labels', not {draw!r}")
        if draws < 2:
            raise ValueError(f"draws must be at least 2, not {draws}")
        self._labels = labels
        self._draws = draws
        self._draw = draw

    @property
    def held(self) -> float:
        """Output gradients are kept until the last draw has come."""
        return 1.0 + self._draws

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores; standard errors over the draws where labels are the model's, else 0.

        Raises:
            ModelError: The loss or a gradient is NaN or infinite.
        """
        from_model = self._from_model(task)
        draws = self._draws if from_model else 0
        found = output_terms(task, Wanted("squares", not from_model, draws, self._draw))
        terms = found.factors if found.slopes is None else found.slopes[None]
        samples = terms.sum(axis=1) / len(task.data)
        if not (np.isfinite(samples).all() and math.isfinite(found.float_loss or 0.0)):
            raise ModelError(f"{task.loss.name} or its gradient is nan or infinite on this data")
        spread = samples.std(axis=0, ddof=1) / math.sqrt(draws) if draws else 0 * samples[0]
        return Scores(
            samples.mean(axis=0),
            spread,
            warnings=_dead(task, samples),
            float_loss=found.float_loss,
        )

    def _from_model(self, task: ScoringTask) -> bool:
        if self._labels != "auto":
            return self._labels == "model"
        if task.loss.target == "float_output":
            # Its gradient is zero at the float model; only its second derivative says anything.
            return True
        if task.data.targets is None:
            try:
                class_axis(task.loss)
            except InputError:
                return False
            return True
        return False


def _dead(task: ScoringTask, samples: NDArray[np.float64]) -> tuple[str, ...]:
    quantized = [column for column, option in enumerate(task.options) if not option.is_float]
    names = [
        layer.name for row, layer in enumerate(task.layers) if not samples[:, row, quantized].any()
    ]
    if not quantized or not names:
        return ()
    return (f"gradient or output error is zero in {', '.join(names)}: their scores say nothing",)
