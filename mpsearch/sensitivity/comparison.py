"""What a comparison of estimators found, and the rows of it that are finished, on disk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mpsearch.errors import DocumentError
from mpsearch.losses import Loss
from mpsearch.models.fingerprint import model_fingerprint
from mpsearch.refining import DEFAULT_PROPOSALS
from mpsearch.schemas.document import Document, Record, write_atomically
from mpsearch.sensitivity.content import content_key, loss_identity
from mpsearch.sensitivity.protocol import ScoringTask

__all__ = ["Comparison", "EstimatorEvidence", "FinishedRows", "finished_rows"]


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
    resumed: bool = Field(
        default=False,
        description="whether an earlier run had begun to score; seconds are of this one",
    )


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


class _FinishedRow(Document):
    """One row, as it is kept."""

    kind: Literal["comparison row"] = "comparison row"
    row: EstimatorEvidence


@dataclass(frozen=True)
class FinishedRows:
    """Where the rows of one comparison are kept.

    Attributes:
        folder: The folder, or None where nothing is kept.
        content: All that a row depends on beside its estimator, as JSON values.
    """

    folder: Path | None
    content: Mapping[str, Any]

    def load(self, estimator: str) -> EstimatorEvidence | None:
        """Find the row of an estimator.

        Args:
            estimator: Its name.

        Returns:
            The row, or None; also None, with a warning, where the file cannot be read.
        """
        file = self._file(estimator, "json")
        if file is None or not file.exists():
            return None
        try:
            return _FinishedRow.load(file).row
        except DocumentError as error:
            warnings.warn(f"measured again, since {error}", RuntimeWarning, stacklevel=2)
            return None

    def begin(self, estimator: str) -> bool:
        """Note that an estimator begins to score.

        Args:
            estimator: Its name.

        Returns:
            Whether an earlier run had begun to.
        """
        file = self._file(estimator, "begun")
        if file is None:
            return False
        earlier = file.exists()
        write_atomically(file, b"")
        return earlier

    def keep(self, row: EstimatorEvidence) -> None:
        """Keep a row for the next run.

        Args:
            row: The row.
        """
        file = self._file(row.estimator, "json")
        if file is not None:
            _FinishedRow(row=row).save(file)

    def _file(self, estimator: str, ending: str) -> Path | None:
        if self.folder is None:
            return None
        key = content_key(estimator=estimator, **self.content)
        return self.folder / f"{estimator}-{key[:32]}.{ending}"


def finished_rows(
    task: ScoringTask, judged_by: Loss, fractions: list[float], allocations: int
) -> FinishedRows:
    """Name the rows of a comparison by everything that they depend on.

    Args:
        task: Model, data, loss, layers and options.
        judged_by: Loss that allocations at the budgets are measured by.
        fractions: The budgets.
        allocations: Number of random whole allocations.

    Returns:
        The place of the rows, in the task's cache.
    """
    if task.cache_dir is None:
        return FinishedRows(None, {})
    data, model = task.data, task.model
    held_out = ""
    if data.held_out_inputs is not None:
        part = replace(data, inputs=data.held_out_inputs, targets=data.held_out_targets, _digest=[])
        held_out = part.fingerprint
    content = {
        "package": version("mpsearch"),
        "model": model_fingerprint(model),
        # Equal weights do not make equal models: the code may differ.
        "code": f"{type(model).__module__}.{type(model).__qualname__}\n{model}",
        "data": [data.fingerprint, held_out, data.batch_size],
        "losses": [loss_identity(task.loss), loss_identity(judged_by)],
        "layers": [layer.name for layer in task.layers],
        "options": [repr(option) for option in task.options],
        "ranges": sorted((name, repr(found)) for name, found in task.ranges.items()),
        "budgets": [fractions, allocations, DEFAULT_PROPOSALS],
        "seed": task.seed,
    }
    return FinishedRows(task.cache_dir / "comparisons", content)
