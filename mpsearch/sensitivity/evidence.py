"""Which estimator to trust on this model: rank agreement with measurements, cost, and outcome."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mpsearch.engine.meter import AllocationMeter
from mpsearch.errors import InputError, MpsearchError
from mpsearch.losses import Loss, as_loss
from mpsearch.menu import Wishes
from mpsearch.pipeline import profile
from mpsearch.progress import OnProgress, Progress, ignore_progress
from mpsearch.schemas import Profile
from mpsearch.schemas.document import Document, Record
from mpsearch.sensitivity.auto import proposal
from mpsearch.sensitivity.catalog import build, known
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.ranking import kendall, spearman
from mpsearch.sensitivity.shards import measure_choices

__all__ = ["Comparison", "EstimatorEvidence", "compare_estimators"]


class EstimatorEvidence(Record):
    """How one estimator did."""

    estimator: str
    seconds: float = Field(description="time to score all layers and options")
    single_spearman: float | None = Field(description="with measured increases of single choices")
    single_kendall: float | None
    whole_spearman: float | None = Field(description="with measured random whole allocations")
    whole_kendall: float | None
    losses: list[float] = Field(
        description="measured increase of its allocation at every budget, on held-out data if any"
    )
    chosen: str | None = Field(default=None, description="what `auto` took")


class Comparison(Document):
    """Estimators beside measurements on one model."""

    kind: Literal["comparison"] = "comparison"
    loss_function: str
    judged_by: str | None = Field(
        default=None, description="loss that `losses` and `float_loss` are of; null: loss_function"
    )
    options: list[str]
    fractions: list[float] = Field(
        description="budgets: fractions of the way from the fewest to the most average weight bits"
    )
    held_out: bool = Field(description="whether `losses` are on data that no score has seen")
    float_loss: float
    rows: list[EstimatorEvidence]
    failures: dict[str, str] = Field(
        default_factory=dict, description="estimators that could not score, and why"
    )
    seed: int = 0


class _Grabber(Estimator):
    """Hands out the scoring task that the pipeline prepares, with the singles measured."""

    name = "measured_loss"
    scores_activations = True

    def __init__(self) -> None:
        self.task: ScoringTask | None = None

    def score(self, task: ScoringTask) -> Scores:
        self.task = task
        return build("measured_loss", {}).score(task)


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
        cache_dir: Folder for finished parts of measurements, as in `profile`; what is found there
            takes no time, which shows in the seconds.
        on_progress: Called after every step.

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
    grabber = _Grabber()
    common: dict[str, Any] = {"loss": loss, "wishes": Wishes(skip=skip), "seed": seed}
    singles = profile(model, data, options, grabber, device=device, cache_dir=cache_dir, **common)
    task = grabber.task
    assert task is not None
    drawn, measured = _random_allocations(task, allocations)
    judge = _Judge(task, task.loss if judged_by is None else as_loss(judged_by))
    rows, failures = [], {}
    names = list(estimators or [entry.name for entry in known()])
    for done, name in enumerate(names, 1):
        started = time.perf_counter()
        try:
            scores = _scored(task, name)
        except MpsearchError as error:
            failures[name] = str(error)
            continue
        took = time.perf_counter() - started
        predicted = [_predicted(scores, columns) for columns in drawn]
        rows.append(
            EstimatorEvidence(
                estimator=name,
                seconds=took,
                single_spearman=_defined(spearman(_offered(scores.loss, task), _of(singles, task))),
                single_kendall=_defined(kendall(_offered(scores.loss, task), _of(singles, task))),
                whole_spearman=_defined(spearman(predicted, measured)),
                whole_kendall=_defined(kendall(predicted, measured)),
                losses=[judge(proposal(task, scores, fraction)) for fraction in fractions],
                chosen=_chosen(scores) if name == "auto" else None,
            )
        )
        on_progress(Progress("profile", done, len(names), name))
    return Comparison(
        loss_function=task.loss.name,
        judged_by=judge.loss.name,
        options=[option.name for option in task.options],
        fractions=list(fractions),
        held_out=task.data.verifies_on_held_out,
        float_loss=judge.float_loss,
        rows=rows,
        failures=failures,
        seed=seed,
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
        task, [_choice(task, columns) for columns in drawn], task.loss, "random allocations"
    )


class _Judge:
    """Measures allocations on the part of the data for verification."""

    def __init__(self, task: ScoringTask, loss: Loss) -> None:
        self.loss = loss
        self._task = task
        self._meter = AllocationMeter(task.quantizer, task.data.verification_batches(), loss)
        self.float_loss = self._meter.measure({}).loss

    def __call__(self, columns: list[int]) -> float:
        return self._meter.measure(_choice(self._task, columns)).loss - self.float_loss


def _choice(task: ScoringTask, columns: Sequence[int]) -> dict[str, Any]:
    return {
        layer.name: task.options[column] for layer, column in zip(task.layers, columns, strict=True)
    }


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


def _of(singles: Profile, task: ScoringTask) -> NDArray[np.float64]:
    return _offered(singles.loss, task)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _chosen(scores: Scores) -> str | None:
    found = [text for text in scores.warnings if text.startswith("auto took ")]
    return found[0].removeprefix("auto took ").partition(":")[0] if found else None
