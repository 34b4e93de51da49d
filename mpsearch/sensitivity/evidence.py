"""Which estimator to trust on this model: rank agreement with measurements, cost, and outcome."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.engine.meter import AllocationMeter
from mpsearch.errors import InputError, MpsearchError
from mpsearch.freed_memory import freed_memory_kept
from mpsearch.losses import Loss, as_loss
from mpsearch.menu import Wishes
from mpsearch.pipeline import profile
from mpsearch.progress import OnProgress, Progress, ignore_progress, with_time_left
from mpsearch.refining import FEWEST_PARTS, PartLosses, perturbed, proposals_wanted, refine
from mpsearch.schemas import Profile
from mpsearch.sensitivity.auto import proposal
from mpsearch.sensitivity.catalog import build, known
from mpsearch.sensitivity.comparison import Comparison, EstimatorEvidence, finished_rows
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.ranking import kendall, spearman
from mpsearch.sensitivity.shards import measure_choices

__all__ = ["Comparison", "compare_estimators"]


class _Grabber(Estimator):
    """Hands out the scoring task that the pipeline prepares, with the singles measured."""

    name = "measured_loss"
    scores_activations = True

    def __init__(self) -> None:
        self.task: ScoringTask | None = None

    def score(self, task: ScoringTask) -> Scores:
        self.task = task
        return build("measured_loss", {}).score(task)


@freed_memory_kept()
def compare_estimators(
    model: Any,  # noqa: ANN401 - as in `profile`
    data: Any,  # noqa: ANN401
    options: Sequence[str],
    estimators: Sequence[str] | None = None,
    *,
    loss: Any = None,  # noqa: ANN401
    judged_by: Any = None,  # noqa: ANN401
    fractions: Sequence[float] = (0.3, 0.5, 0.7),
    allocations: int = 24,
    skip: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    cache_dir: str | Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Comparison:
    """Measure how well estimators rank what quantization does to this model, and what each costs.

    The allocations of `auto` are refined on the calibration data, as a search does by default.

    Args:
        model: As in `profile`.
        data: As in `profile`; allocations at budgets are measured on its held-out part if any.
        options: Names of the options.
        estimators: Names; by default all that can tell these options apart.
        loss: As in `profile`.
        judged_by: Loss that allocations at the budgets are measured by; None: the same one.
        fractions: Budgets, as fractions of the way from the fewest to the most average weight bits.
        allocations: Number of random whole allocations to measure.
        skip: Patterns of layers to leave in float.
        seed: Seed of everything random.
        device: As in `profile`.
        cache_dir: Folder for finished rows and for finished parts of measurements, as in `profile`:
            a run that was killed goes on from there. Every estimator has parts of its own, so that
            its seconds are those of its whole work; where a run was resumed, the row says so.
        on_progress: Called after every step: stage `compare` counts estimators, the steps of each
            are of stage `profile`.

    Returns:
        One row for every estimator, in catalog order, and the reasons of those that refused.

    Raises:
        InputError: No allocations to measure, or a fraction outside 0 to 1.
    """
    if allocations < 3 or not all(0 <= fraction <= 1 for fraction in fractions):
        raise InputError(
            f"allocations must be at least 3 and fractions 0 to 1, not {allocations} and "
            f"{list(fractions)}"
        )
    common: dict[str, Any] = {"loss": loss, "wishes": Wishes(skip=skip), "seed": seed}
    grabber = _Grabber()
    singles = profile(
        model,
        data,
        options,
        grabber,
        device=device,
        cache_dir=cache_dir,
        on_progress=on_progress,
        **common,
    )
    task = grabber.task
    assert task is not None
    judged = task.loss if judged_by is None else as_loss(judged_by)
    measured = _Measured(task, singles, judged, list(fractions), allocations)
    kept = finished_rows(task, judged, list(fractions), allocations)
    rows, failures = [], {}
    names = list(estimators or [entry.name for entry in known()])
    tell = with_time_left(on_progress)
    for done, name in enumerate(names):
        tell(Progress("compare", done, len(names), "estimators"))
        row = kept.load(name)
        if row is None:
            resumed = kept.begin(name)
            started = time.perf_counter()
            try:
                scores = _scored(_own(task, name, on_progress), name)
            except MpsearchError as error:
                failures[name] = str(error)
                continue
            row = measured.row(name, scores, time.perf_counter() - started, resumed)
            kept.keep(row)
        rows.append(row)
    tell(Progress("compare", len(names), len(names), "estimators"))
    return Comparison(
        loss_function=task.loss.name,
        judged_by=judged.name,
        options=[option.name for option in task.options],
        fractions=list(fractions),
        held_out=task.data.verifies_on_held_out,
        float_loss=measured.float_loss,
        rows=rows,
        failures=failures,
        seed=seed,
    )


class _Measured:
    """What estimators are held against: single choices, random allocations, and outcomes."""

    def __init__(
        self,
        task: ScoringTask,
        singles: Profile,
        judged_by: Loss,
        fractions: Sequence[float],
        allocations: int,
    ) -> None:
        self._task = task
        self._singles = _offered(singles.loss, task)
        self._drawn, self._whole = _random_allocations(task, allocations)
        self._fractions = fractions
        self._meter = AllocationMeter(task.quantizer, task.data.verification_batches(), judged_by)
        self._parts = PartLosses(task.quantizer, task.data, task.loss)
        self.float_loss = self._meter.measure({}).loss

    def row(self, name: str, scores: Scores, seconds: float, resumed: bool) -> EstimatorEvidence:
        """Hold scores against what was measured, and measure what they lead to."""
        single = _offered(scores.loss, self._task)
        whole = [_predicted(scores, columns) for columns in self._drawn]
        started = time.perf_counter()
        proposals = proposals_wanted(None, name)
        found = [self._proposal(scores, fraction, proposals) for fraction in self._fractions]
        if proposals and found:  # a search refines at one budget
            seconds += (time.perf_counter() - started) / len(found)
        return EstimatorEvidence(
            estimator=name,
            seconds=seconds,
            single_spearman=_defined(spearman(single, self._singles)),
            single_kendall=_defined(kendall(single, self._singles)),
            whole_spearman=_defined(spearman(whole, self._whole)),
            whole_kendall=_defined(kendall(whole, self._whole)),
            losses=[self._outcome(columns) for columns in found],
            chosen=_chosen(scores) if name == "auto" else None,
            resumed=resumed,
        )

    def _proposal(self, scores: Scores, fraction: float, proposals: int) -> list[int]:
        """Solve, and measure proposals beside the answer, as a search does by default."""
        task = self._task
        first = proposal(task, scores, fraction)
        if not proposals or self._parts.parts < FEWEST_PARTS:
            return first

        def propose(generator: np.random.Generator, spread: float) -> list[int]:
            loss, pairs = perturbed(scores.loss, scores.interactions, generator, spread)
            moved = replace(scores, loss=loss, interactions=pairs)
            return proposal(task, moved, fraction, quickly=True)

        return refine(
            first,
            propose,
            lambda columns: self._parts(task.choice(columns)),
            tuple,
            proposals=proposals,
            seed=task.seed,
        ).chosen

    def _outcome(self, columns: Sequence[int]) -> float:
        return self._meter.measure(self._task.choice(columns)).loss - self.float_loss


def _own(task: ScoringTask, name: str, on_progress: OnProgress) -> ScoringTask:
    """Give an estimator a cache of its own, and say in progress reports whose they are."""
    timed = with_time_left(on_progress)
    return replace(
        task,
        cache_dir=None if task.cache_dir is None else task.cache_dir / "estimators" / name,
        on_progress=lambda report: timed(replace(report, message=f"{name}: {report.message}")),
    )


def _scored(task: ScoringTask, name: str) -> Scores:
    scorer = build(name, {})
    kinds = {option.activation for option in task.options if not option.is_float}
    if not scorer.scores_activations and len(kinds) > 1:
        raise InputError(f"{name} scores weights only, and the options differ in activations")
    return scorer.score(task)


def _random_allocations(
    task: ScoringTask, count: int
) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Draw allocations of all degrees of compression and measure them on the calibration data."""
    generator = np.random.default_rng(task.seed)
    drawn = []
    for number in range(count):
        # Weighted towards one end of the menu, so that mild and harsh allocations both occur.
        tilt = np.linspace(-1.0, 1.0, len(task.options)) * (4 * number / max(1, count - 1) - 2)
        weights = np.exp(tilt)
        drawn.append(
            generator.choice(
                len(task.options), len(task.layers), p=weights / weights.sum()
            ).tolist()
        )
    return drawn, measure_choices(
        task, [task.choice(columns) for columns in drawn], task.loss, "random allocations"
    )


def _predicted(scores: Scores, columns: Sequence[int]) -> float:
    rows = np.arange(len(columns))
    chosen = np.asarray(columns)
    total = list(scores.loss[rows, chosen])
    if scores.interactions is not None:
        cells = rows * scores.loss.shape[1] + chosen
        total += list(np.triu(scores.interactions[np.ix_(cells, cells)], 1).ravel())
    return math.fsum(total)


def _offered(table: NDArray[np.float64], task: ScoringTask) -> NDArray[np.float64]:
    quantized = [not option.is_float for option in task.options]
    flat: NDArray[np.float64] = table[:, quantized].ravel()
    return flat


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _chosen(scores: Scores) -> str | None:
    found = [text for text in scores.warnings if text.startswith("auto took ")]
    return found[0].removeprefix("auto took ").partition(":")[0] if found else None
