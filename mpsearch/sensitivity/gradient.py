"""First-order sensitivity: the loss gradient against the quantization error."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from mpsearch.errors import InputError
from mpsearch.losses import Loss
from mpsearch.sensitivity.gradient_passes import GradientPass, gradients_of
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask

__all__ = ["GradientDeviation", "refuse_flat"]


class GradientDeviation(Estimator):
    """|<g_W, W - Q(W)>| + |<g_A, A - Q(A)>|, the first-order Taylor term in weight and input.

    `at="float"`: one backward pass over the data serves every layer and option; the weight gradient
    is kept and multiplied with each option's deviation, and each activation gradient is used the
    moment it appears and dropped. `at="quantized"`: the gradients are taken with every layer at the
    option, one backward pass per option, with the straight-through estimator for activations; there
    a loss that compares with the float model has a gradient, too. `elementwise=True` adds up
    |g · (W - Q(W))| over the elements, so that terms of different sign do not cancel.

    Source: AutoRound's DeltaLoss and SignRoundV2 (gradient at the quantized point).
    """

    name: ClassVar[str] = "gradient_deviation"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def __init__(
        self, elementwise: bool = False, at: Literal["float", "quantized"] = "float"
    ) -> None:
        """Choose the form of the inner product and where the gradient is taken.

        Args:
            elementwise: Whether magnitudes are summed instead of signed terms.
            at: `float` or `quantized`.

        Raises:
            ValueError: Another point.
        """
        if at not in {"float", "quantized"}:
            raise ValueError(f"at is 'float' or 'quantized', not {at!r}")
        self._elementwise = elementwise
        self._at = at

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores without randomness, so standard errors are 0.
        """
        everything = tuple(range(len(task.options)))
        if self._at == "float":
            refuse_flat(self.name, task.loss)
            passes = [GradientPass(None, everything)]
        else:
            offered = [c for c in everything if not task.options[c].is_float]
            passes = [GradientPass(column, (column,)) for column in offered]
        score = np.zeros((len(task.layers), len(task.options)))
        alive, losses = np.zeros(len(task.layers), dtype=np.bool_), []
        for found in gradients_of(task, passes, self._elementwise) if passes else []:
            score[:, found.columns] = found.scores(task)
            alive |= found.alive
            losses.append(found.loss)
        dead = [layer.name for layer, lives in zip(task.layers, alive, strict=True) if not lives]
        warnings = (
            (f"gradient is zero everywhere in {', '.join(dead)}: their scores say nothing",)
            if dead
            else ()
        )
        float_loss = losses[0] if self._at == "float" else None
        return Scores(score, np.zeros_like(score), warnings=warnings, float_loss=float_loss)


def refuse_flat(estimator: str, loss: Loss) -> None:
    """Refuse a loss whose gradient is zero at the float model whatever the layer.

    Args:
        estimator: Name of the estimator, for the message.
        loss: The loss.

    Raises:
        InputError: The loss compares with the float model itself.
    """
    if loss.target == "float_output":
        raise InputError(
            f"{estimator} reads the gradient of the loss, and that of {loss.name} is zero at the "
            "float model; give labels and a loss that uses them, or use fisher_output, ggn_trace, "
            "taylor2 or measured_kl"
        )
