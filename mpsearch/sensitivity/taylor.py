"""Taylor expansions of the loss to second order in the error that an option makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import ModelError
from mpsearch.sensitivity.output_curvature import Draw
from mpsearch.sensitivity.output_terms import EXACT_DRAWS, OutputTerms, Wanted, output_terms
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask

__all__ = ["Taylor2"]

FirstOrder = Literal["signed", "absolute", "none"]


class Taylor2(Estimator):
    """|g·Δ| + ½ Δᵀ G Δ of every layer at every option, with the Gauss-Newton matrix G.

    Δ is the whole error that the option makes in the layer, weights and inputs together: both terms
    are taken at the layer's output Y, where g·Δ = mean_n <∂l_n/∂Y, Y_q - Y> and Δᵀ G Δ = mean_n
    E <J_nᵀ v_n, Y_q - Y>² with E[v_n v_nᵀ] the loss's second derivative in the output. Nothing is
    taken to be diagonal: the second term is exact for the matrix up to the drawing of v.

    The first term is taken in absolute value unless `first_order="signed"`: a negative one promises
    a gain over the float model that holds on the calibration inputs alone, and a solver that may
    choose among many such promises collects them.

    For a loss that compares with the float model itself the first term is zero and half the second
    is the second-order expansion of that divergence, without labels.

    Source: the expansion of Optimal Brain Damage (LeCun et al. 1989) with the first-order term kept
    (after "First-Order Error Matters", 2025); Gauss-Newton matrix as in Martens 2020, JMLR 21.
    """

    name: ClassVar[str] = "taylor2"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def __init__(
        self,
        draws: int | Literal["exact"] = 8,
        draw: Draw = "signs",
        first_order: FirstOrder = "absolute",
    ) -> None:
        """Choose the terms.

        Args:
            draws: Backward passes for the second-order term, at least 2, or `exact` for one per
                class.
            draw: How they are drawn, see `draw_factor`.
            first_order: Keep the sign of the first term, take its absolute value, or leave it out.

        Raises:
            ValueError: Fewer than 2 draws, or an unknown choice.
        """
        if draws != "exact" and (not isinstance(draws, int) or draws < 2):
            raise ValueError(f"draws must be at least 2 or 'exact', not {draws!r}")
        if draw not in {"signs", "labels"}:
            raise ValueError(f"draw is 'signs' or 'labels', not {draw!r}")
        if first_order not in {"signed", "absolute", "none"}:
            raise ValueError(f"first_order is 'signed', 'absolute' or 'none', not {first_order!r}")
        self._draws = draws
        self._draw = draw
        self._first_order = first_order

    @property
    def held(self) -> float:
        """Output gradients are kept until the last draw has come."""
        return 1.0 + (self._draws if isinstance(self._draws, int) else EXACT_DRAWS)

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores with standard errors over the draws of the second-order term.

        Raises:
            ModelError: The loss or a gradient is NaN or infinite.
        """
        return self.score_parts(task, [np.arange(len(task.data))])[0]

    def score_parts(self, task: ScoringTask, parts: Sequence[NDArray[np.int64]]) -> list[Scores]:
        """Score from parts of the inputs, whose terms are all found in one go.

        Args:
            task: As in `score`.
            parts: Positions of inputs.

        Returns:
            Scores from every part.

        Raises:
            ModelError: The loss or a gradient is NaN or infinite.
        """
        sloped = self._first_order != "none" and task.loss.target == "data"
        found = output_terms(task, Wanted("products", sloped, self._draws, self._draw))
        scores = [self._part(found, rows) for rows in parts]
        finite = all(np.isfinite(part.loss).all() for part in scores)
        if not finite or not math.isfinite(found.float_loss or 0.0):
            raise ModelError(f"{task.loss.name} or its gradient is nan or infinite on this data")
        everything = [len(rows) == len(task.data) for rows in parts]
        return [
            replace(part, float_loss=found.float_loss if whole else None)
            for part, whole in zip(scores, everything, strict=True)
        ]

    def _part(self, found: OutputTerms, rows: NDArray[np.int64]) -> Scores:
        # Δᵀ G Δ with the Gauss-Newton matrix G: one estimate for every draw, or their whole sum.
        second = 0.5 * np.square(found.factors[:, rows]).mean(axis=1)
        if self._draws == "exact":
            score = second.sum(axis=0)
            stderr = np.zeros_like(score)
        else:
            score = second.mean(axis=0)
            stderr = second.std(axis=0, ddof=1) / math.sqrt(len(second))
        if found.slopes is not None:
            first = found.slopes[rows].mean(axis=0)
            score = score + (np.abs(first) if self._first_order == "absolute" else first)
        return Scores(score, stderr)
