"""The estimator `auto`: candidates propose allocations, and the model itself decides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError, ModelError
from mpsearch.sensitivity.catalog import build
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.shards import measure_choices
from mpsearch_solvers import Problem, solve
from mpsearch_solvers.problem import Interactions

__all__ = ["CANDIDATES", "Auto"]

CANDIDATES = "fisher_output,taylor2,measured_kl,pairwise"
FRACTIONS = (0.25, 0.5, 0.75)
FLOAT_BITS = 32.0


class Auto(Estimator):
    """Takes the scores of the candidate whose proposals measure best on the calibration data.

    Every candidate scores the layers, proposes the allocation of least predicted loss at three
    budgets of average weight bits (a quarter, half and three quarters of the way from the fewest to
    the most), and each proposal is run. The candidate with the smallest geometric mean of measured
    losses relative to the best at each budget is taken; the profile's warnings say which and why.
    """

    name: ClassVar[str] = "auto"
    scores_activations: ClassVar[bool] = True

    def __init__(self, candidates: str = CANDIDATES) -> None:
        """Choose the candidates.

        Args:
            candidates: Names of estimators, with commas between them.

        Raises:
            ValueError: Fewer than 2.
        """
        names = [name.strip() for name in candidates.split(",")]
        if len(names) < 2 or self.name in names:
            raise ValueError(f"candidates must be at least 2 other estimators, not {names}")
        self._candidates = names

    def score(self, task: ScoringTask) -> Scores:
        """Score by every candidate and keep the best one's; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            The chosen candidate's scores; `statistics` holds the measured loss of every proposal.

        Raises:
            InputError: No candidate can score this model and menu.
            ModelError: The model or its loss is not finite.
        """
        found: dict[str, Scores] = {}
        refused: list[str] = []
        for name in self._candidates:
            scorer = build(name, {})
            if task.activation_formats and not scorer.scores_activations:
                refused.append(f"{name} scores weights only")
                continue
            try:
                found[name] = scorer.score(task)
            except ModelError:
                raise  # a broken model is broken for every candidate
            except InputError as error:
                refused.append(f"{name}: {error}")
        if not found:
            raise InputError("no candidate of auto can score this: " + "; ".join(refused))
        measured = self._measured(task, found)
        best = measured.min(axis=0)
        # Losses at or below that of the float model have no ratio; they are all as good as none.
        floor = max(1e-12, 1e-6 * float(np.abs(measured).max()))
        ratios = np.log(np.maximum(measured, floor) / np.maximum(best, floor)).mean(axis=1)
        names = list(found)
        chosen = names[int(np.argmin(ratios))]
        shown = ", ".join(
            f"{name} {math.exp(ratio):.2f}" for name, ratio in zip(names, ratios, strict=True)
        )
        why = (
            f"auto took {chosen}: measured loss of its proposals over the best at three budgets is "
            f"{math.exp(float(ratios.min())):.2f} (of all: {shown})"
        )
        table = {
            f"auto_loss_at_{fraction:.0%}": dict(zip(names, column.tolist(), strict=True))
            for fraction, column in zip(FRACTIONS, measured.T, strict=True)
        }
        scores = found[chosen]
        return replace(
            scores,
            statistics={**scores.statistics, **table},
            warnings=(*scores.warnings, why, *refused),
        )

    def _measured(self, task: ScoringTask, found: dict[str, Scores]) -> NDArray[np.float64]:
        """Measure every candidate's proposals: loss increase, candidates x budgets."""
        proposals = [
            proposal(task, scores, fraction) for scores in found.values() for fraction in FRACTIONS
        ]
        choices = [
            {
                layer.name: task.options[column]
                for layer, column in zip(task.layers, columns, strict=True)
            }
            for columns in proposals
        ]
        losses = measure_choices(task, [{}, *choices], task.loss, "proposals of candidates")
        increases: NDArray[np.float64] = losses[1:] - losses[0]
        return increases.reshape(len(found), len(FRACTIONS))


def proposal(task: ScoringTask, scores: Scores, fraction: float) -> list[int]:
    """Find the allocation of least predicted loss at a budget of average weight bits.

    Args:
        task: Layers and options.
        scores: Predicted losses.
        fraction: Of the way from the fewest to the most bits.

    Returns:
        Position of each layer's option.
    """
    sizes = np.array([layer.weights for layer in task.layers], dtype=np.float64)
    widths = [FLOAT_BITS if o.weight.is_float else o.weight.bits for o in task.options]
    bits = np.outer(sizes / sizes.sum(), widths)
    least, most = bits.min(axis=1).sum(), bits.max(axis=1).sum()
    pairs = None
    if scores.interactions is not None:
        width = len(task.options)
        first, second = np.nonzero(np.triu(scores.interactions, 1))
        pairs = Interactions(
            np.stack([first // width, second // width], axis=1),
            np.stack([first % width, second % width], axis=1),
            scores.interactions[first, second],
        )
    problem = Problem.from_arrays(
        scores.loss,
        costs={"bits": bits},
        limits={"bits": float(least + fraction * (most - least)) * (1 + 1e-12)},
        names=[layer.name for layer in task.layers],
        options=[option.name for option in task.options],
        interactions=pairs,
    )
    solution = solve(problem, gap=1e-3, time_limit=20.0, seed=task.seed)
    assert solution.indices is not None
    return [int(column) for column in solution.indices]
