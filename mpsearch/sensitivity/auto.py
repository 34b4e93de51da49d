"""The estimator `auto`: candidates propose allocations, and the model itself decides."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Option
from mpsearch.sensitivity.catalog import build
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask, part_of
from mpsearch.sensitivity.shards import measure_choices
from mpsearch.sensitivity.single_outputs import outputs_fit
from mpsearch_solvers import Problem, solve
from mpsearch_solvers.problem import Interactions

__all__ = ["CANDIDATES", "Auto"]

CANDIDATES = "fisher_output,taylor2,measured_kl,pairwise"
FRACTIONS = (0.25, 0.5, 0.75)
FLOAT_BITS = 32.0
FOLDS = 5
"""Parts of the inputs; each takes its turn as what no score has seen."""


class Auto(Estimator):
    """Takes the most trusted candidate that is not measurably worse than the best on unseen inputs.

    The calibration inputs are cut into folds at random. Every candidate scores the layers on all
    but one fold and proposes the allocation of least predicted loss at three budgets of average
    weight bits (a quarter, half and three quarters of the way from the fewest to the most); each
    proposal is run on that fold, fold after fold. The best candidate has the smallest geometric
    mean of measured losses relative to the least at each budget. Of those that are not worse than
    it by more than a standard error over the folds, the last in the list is taken and scores on all
    inputs; the profile's warnings say which and why. The list is in order of rising trust: a few
    inputs cannot tell good candidates apart, and what measures more of the model stands later.

    Five folds, so that candidates are judged by scores from nearly as many inputs as the answer's
    will come from: on half of few inputs those that learn most from data do worst. What is measured
    once serves all folds and every candidate of the same loss (`score_parts`); where the outputs of
    single choices do not fit into memory, every part is measured anew, and there are two folds.
    """

    name: ClassVar[str] = "auto"
    scores_activations: ClassVar[bool] = True

    def __init__(self, candidates: str = CANDIDATES) -> None:
        """Choose the candidates.

        Args:
            candidates: Names of estimators, with commas between them, the most trusted last.

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
        with _sharing(task) as shared:
            return self._score(shared)

    def _score(self, task: ScoringTask) -> Scores:
        refused: dict[str, str] = {}
        folds = _folds(task)
        proposed = self._proposed(task, [seen for seen, _ in folds], refused)
        names = list(proposed)
        each, shares = [], []
        for fold, (_, unseen) in enumerate(folds):
            choices = [choice for name in names for choice in proposed[name][fold]]
            measured = measure_choices(
                replace(task, data=part_of(task.data, unseen)),
                choices,
                task.loss,
                f"proposals of candidates, fold {fold + 1} of {len(folds)}",
            )
            each.append(measured.reshape(len(names), len(FRACTIONS)))
            shares.append(len(unseen))
        losses = np.average(each, axis=0, weights=shares)
        # A divergence may be nothing at all; what is that small has no ratio.
        floor = max(1e-12, 1e-6 * float(np.abs(losses).max()))
        kept = np.maximum(losses, floor)
        ratios = np.log(kept / kept.min(axis=0)).mean(axis=1)
        by_fold = np.log(np.maximum(each, floor)).mean(axis=2)
        best = int(np.argmin(ratios))
        trusted = most_trusted(by_fold, best)
        chosen = names[trusted]
        shown = ", ".join(
            f"{name} {math.exp(ratio):.3f}" for name, ratio in zip(names, ratios, strict=True)
        )
        why = (
            f"auto took {chosen}: measured loss of its proposals over the best at three budgets, "
            "on inputs that its scores had not seen, is "
            f"{math.exp(float(ratios[trusted])):.3f} (of all: {shown})"
        )
        if trusted != best:
            why += f"; {names[best]} measured less, by no more than the error over the folds"
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

    def _proposed(
        self, task: ScoringTask, parts: Sequence[NDArray[np.int64]], refused: dict[str, str]
    ) -> dict[str, list[list[dict[str, Option]]]]:
        """Score on parts of the data and solve at every budget.

        Returns:
            Every able candidate's proposals, part by part and budget by budget.

        Raises:
            InputError: No candidate can score this model and menu.
            ModelError: The model or its loss is not finite.
        """
        proposed: dict[str, list[list[dict[str, Option]]]] = {}
        for name, scorer in self._scorers.items():
            if task.activation_formats and not scorer.scores_activations:
                refused[name] = f"{name} scores weights only"
                continue
            try:
                found = scorer.score_parts(_saying(task, name), parts)
            except ModelError:
                raise  # a broken model is broken for every candidate
            except InputError as error:
                refused[name] = f"{name}: {error}"
                continue
            proposed[name] = [
                [
                    task.choice(proposal(task, scores, fraction, quickly=True))
                    for fraction in FRACTIONS
                ]
                for scores in found
            ]
        if not proposed:
            raise InputError("no candidate of auto can score this: " + "; ".join(refused.values()))
        return proposed


@contextmanager
def _sharing(task: ScoringTask) -> Iterator[ScoringTask]:
    """Keep what candidates measure for the time of scoring, so that none measures it again."""
    if task.cache_dir is not None:
        yield task
        return
    with tempfile.TemporaryDirectory(prefix="mpsearch-auto-") as folder:
        yield replace(task, cache_dir=Path(folder))


def most_trusted(losses: NDArray[np.float64], best: int) -> int:
    """Find the last candidate that is not measurably worse than the best one.

    Args:
        losses: Mean logarithms of measured losses, folds x candidates.
        best: Position of the best candidate.

    Returns:
        Position of the last candidate whose mean difference from the best, fold by fold, is at most
        its standard error over the folds (the one-standard-error rule of Breiman et al. 1984,
        "Classification and Regression Trees", section 3.4.3); the best where there is one fold.
    """
    if len(losses) < 2:
        return best
    worse = losses - losses[:, best : best + 1]
    error = worse.std(axis=0, ddof=1) / math.sqrt(len(losses))
    return int(np.flatnonzero(worse.mean(axis=0) <= error)[-1])


def _saying(task: ScoringTask, what: str) -> ScoringTask:
    """Name in progress reports what the same kind of work is done for."""
    told = task.on_progress
    return replace(
        task, on_progress=lambda report: told(replace(report, message=f"{what}: {report.message}"))
    )


def _folds(task: ScoringTask) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cut the inputs at random: what is scored on, and what is measured on."""
    count = len(task.data)
    if count < 2:
        return [(np.arange(count), np.arange(count))]
    number = min(count, FOLDS if outputs_fit(task) else 2)
    drawn = np.random.default_rng(task.seed).permutation(count)
    return [
        (np.setdiff1d(np.arange(count), fold), np.sort(fold))
        for fold in np.array_split(drawn, number)
    ]


def proposal(
    task: ScoringTask, scores: Scores, fraction: float, *, quickly: bool = False
) -> list[int]:
    """Find the allocation of least predicted loss at a budget of average weight bits.

    Args:
        task: Layers and options.
        scores: Predicted losses.
        fraction: Of the way from the fewest to the most bits.
        quickly: Be content with a local search where there are interactions.

    Returns:
        Position of each layer's option.
    """
    sizes = np.array([layer.weights for layer in task.layers], dtype=np.float64)
    widths = [FLOAT_BITS if o.weight.is_float else o.weight.bits for o in task.options]
    bits = np.outer(sizes / sizes.sum(), widths)
    least, most = bits.min(axis=1).sum(), bits.max(axis=1).sum()
    pairs = None
    if scores.interactions is not None:
        everything = np.ones_like(scores.loss, dtype=np.bool_)
        pairs = Interactions.from_matrix(scores.interactions, everything)
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
    method = "local_search" if quickly and pairs is not None else "auto"
    solution = solve(problem, method=method, gap=gap, time_limit=20.0, seed=task.seed)
    assert solution.indices is not None
    return [int(column) for column in solution.indices]
