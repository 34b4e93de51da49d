"""The estimator `auto`: candidates propose allocations, and the model itself decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Option
from mpsearch.models.dataset import DataSet
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
    """Takes the candidate whose proposals measure best on inputs that its scores have not seen.

    The calibration inputs are split in two at random. Every candidate scores the layers on either
    half and proposes the allocation of least predicted loss at three budgets of average weight bits
    (a quarter, half and three quarters of the way from the fewest to the most); each proposal is
    run on the other half. The candidate with the smallest geometric mean of measured losses
    relative to the best at each budget is taken and scores on all inputs; the profile's warnings
    say which and why.
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
        self._scorers = {name: build(name, {}) for name in names}

    @property
    def held(self) -> float:
        """That of the candidate that holds most."""
        return max(scorer.held for scorer in self._scorers.values())

    def score(self, task: ScoringTask) -> Scores:
        """Score by every candidate and keep the best one's; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            The chosen candidate's scores; `statistics` holds the measured loss of every proposal.
        """
        refused: dict[str, str] = {}
        folds = [
            self._measured(_saying(task, f"fold {number}"), seen, unseen, refused)
            for number, (seen, unseen) in enumerate(_folds(task), 1)
        ]
        names = [name for name in self._scorers if name not in refused]
        losses = np.array([[fold[name] for name in names] for fold in folds]).mean(axis=0)
        # A divergence may be nothing at all; what is that small has no ratio.
        floor = max(1e-12, 1e-6 * float(np.abs(losses).max()))
        kept = np.maximum(losses, floor)
        ratios = np.log(kept / kept.min(axis=0)).mean(axis=1)
        chosen = names[int(np.argmin(ratios))]
        shown = ", ".join(
            f"{name} {math.exp(ratio):.3f}" for name, ratio in zip(names, ratios, strict=True)
        )
        why = (
            f"auto took {chosen}: measured loss of its proposals over the best at three budgets, "
            f"on inputs that its scores had not seen, is {math.exp(float(ratios.min())):.3f} (of "
            f"all: {shown})"
        )
        table = {
            f"auto_loss_at_{fraction:.0%}": dict(zip(names, column.tolist(), strict=True))
            for fraction, column in zip(FRACTIONS, losses.T, strict=True)
        }
        scores = self._scorers[chosen].score(_saying(task, chosen))
        return replace(
            scores,
            statistics={**scores.statistics, **table},
            warnings=(*scores.warnings, why, *refused.values()),
        )

    def _measured(
        self, task: ScoringTask, seen: DataSet, unseen: DataSet, refused: dict[str, str]
    ) -> dict[str, NDArray[np.float64]]:
        """Score on one part of the data and measure what is proposed on the other.

        Returns:
            Measured loss of every able candidate's proposals.

        Raises:
            InputError: No candidate can score this model and menu.
            ModelError: The model or its loss is not finite.
        """
        choices: list[dict[str, Option]] = []
        able: list[str] = []
        for name, scorer in self._scorers.items():
            if name in refused:
                continue
            if task.activation_formats and not scorer.scores_activations:
                refused[name] = f"{name} scores weights only"
                continue
            try:
                scores = scorer.score(_saying(replace(task, data=seen), name))
            except ModelError:
                raise  # a broken model is broken for every candidate
            except InputError as error:
                refused[name] = f"{name}: {error}"
                continue
            able.append(name)
            choices += [_choice(task, proposal(task, scores, f)) for f in FRACTIONS]
        if not able:
            raise InputError("no candidate of auto can score this: " + "; ".join(refused.values()))
        losses = measure_choices(
            replace(task, data=unseen), choices, task.loss, "proposals of candidates"
        )
        return dict(zip(able, losses.reshape(len(able), len(FRACTIONS)), strict=True))


def _saying(task: ScoringTask, what: str) -> ScoringTask:
    """Name in progress reports what the same kind of work is done for."""
    told = task.on_progress
    return replace(
        task, on_progress=lambda report: told(replace(report, message=f"{what}: {report.message}"))
    )


def _folds(task: ScoringTask) -> list[tuple[DataSet, DataSet]]:
    """Split the inputs in two at random: what is scored on, and what is measured on."""
    data, count = task.data, len(task.data)
    if count < 2:
        return [(data, data)]
    drawn = np.random.default_rng(task.seed).permutation(count)
    halves = [_part(data, np.sort(half)) for half in (drawn[: count // 2], drawn[count // 2 :])]
    return [(halves[0], halves[1]), (halves[1], halves[0])]


def _part(data: DataSet, rows: NDArray[np.int64]) -> DataSet:
    index = torch.from_numpy(rows).to(data.inputs.device)
    targets = None if data.targets is None else data.targets[index]
    return replace(
        data,
        inputs=data.inputs[index],
        targets=targets,
        held_out_inputs=None,
        held_out_targets=None,
        _digest=[],
    )


def _choice(task: ScoringTask, columns: Sequence[int]) -> dict[str, Option]:
    return {
        layer.name: task.options[column] for layer, column in zip(task.layers, columns, strict=True)
    }


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
    # Sums are solved in milliseconds; a looser gap would leave the answer to chance where many
    # allocations are about as good, and pairs are not proven much closer in the time.
    gap = 1e-6 if pairs is None else 1e-3
    problem = Problem.from_arrays(
        scores.loss,
        costs={"bits": bits},
        limits={"bits": float(least + fraction * (most - least)) * (1 + 1e-12)},
        names=[layer.name for layer in task.layers],
        options=[option.name for option in task.options],
        interactions=pairs,
    )
    solution = solve(problem, gap=gap, time_limit=20.0, seed=task.seed)
    assert solution.indices is not None
    return [int(column) for column in solution.indices]
