"""What an estimator is given and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpsearch.formats import Format, Option
from mpsearch.losses import Loss
from mpsearch.models.dataset import DataSet
from mpsearch.models.layers import Layer
from mpsearch.progress import OnProgress
from mpsearch.quantize import Quantizer

__all__ = ["Estimator", "Scores", "ScoringTask", "part_of"]


@dataclass(frozen=True)
class ScoringTask:
    """Everything an estimator may look at.

    Attributes:
        model: The float model.
        layers: Layers to score, in execution order.
        options: Options to score each layer at.
        data: Calibration data.
        loss: The loss whose increase is predicted.
        quantizer: Quantized weights and calibrated inputs of the same model.
        seed: Seed of everything random.
        on_progress: Called after every step.
        ranges: Calibrated input range of every layer, as the quantizer has them.
        cache_dir: Folder where finished parts of long work are kept; None: nowhere.
        executor: Where independent parts of long work run; None: here, one after the other.
        memory_limit: Most bytes to hold beside the model and its data; None: no limit of its own.
    """

    model: nn.Module
    layers: Sequence[Layer]
    options: Sequence[Option]
    data: DataSet
    loss: Loss
    quantizer: Quantizer
    seed: int
    on_progress: OnProgress
    ranges: Mapping[str, Any] = field(default_factory=dict)
    cache_dir: Path | None = None
    executor: Executor | None = None
    memory_limit: int | None = None

    @property
    def weight_formats(self) -> list[Format]:
        """The distinct weight formats of the options, without `float`."""
        return list(dict.fromkeys(o.weight for o in self.options if not o.weight.is_float))

    @property
    def activation_formats(self) -> list[Format]:
        """The distinct activation formats of the options, without `float`."""
        return list(dict.fromkeys(o.activation for o in self.options if not o.activation.is_float))

    def choice(self, columns: Sequence[int]) -> dict[str, Option]:
        """Name what positions stand for.

        Args:
            columns: Position of each layer's option.

        Returns:
            Layer -> option.
        """
        return {
            layer.name: self.options[column]
            for layer, column in zip(self.layers, columns, strict=True)
        }


@dataclass(frozen=True)
class Scores:
    """What an estimator found.

    Attributes:
        loss: Predicted loss increase, float64, layers x options.
        stderr: Standard error from the estimator's own randomness, float64, layers x options.
        statistics: Per-layer figures behind the scores: name -> layer -> value.
        warnings: What the reader of the scores should know.
        float_loss: Loss of the unquantized model, where the estimator measured it.
        interactions: Extra loss of pairs of choices, float64, (layers x options) squared in row
            order; an unordered pair's loss stands in both its cells. None: losses just add up.
    """

    loss: NDArray[np.float64]
    stderr: NDArray[np.float64]
    statistics: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    float_loss: float | None = None
    interactions: NDArray[np.float64] | None = None


class Estimator(ABC):
    """Predicts the loss increase of every layer at every option.

    Subclasses take their settings as keyword arguments of `__init__`, with defaults.
    """

    name: ClassVar[str]
    """Name in the catalog."""
    scores_activations: ClassVar[bool]
    """Whether options that differ only in the activation format get different scores."""
    expands: ClassVar[bool] = False
    """Whether scores are terms of a Taylor expansion at the float model, trusted less the coarser
    the format."""

    @property
    def held(self) -> float:
        """How many times the tensors that a backward pass of one batch saves are held at once."""
        return 1.0

    @abstractmethod
    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option.

        Args:
            task: Model, layers, options, data.

        Returns:
            The scores; `float` scores 0.
        """

    def score_parts(self, task: ScoringTask, parts: Sequence[NDArray[np.int64]]) -> list[Scores]:
        """Score from parts of the inputs, each as if there were no others.

        Args:
            task: As in `score`.
            parts: Positions of inputs.

        Returns:
            Scores from every part. Estimators that find the terms of single inputs do so once.
        """
        return [self.score(replace(task, data=part_of(task.data, rows))) for rows in parts]


def part_of(data: DataSet, rows: NDArray[np.int64]) -> DataSet:
    """Take some of the calibration inputs.

    Args:
        data: The data.
        rows: Positions of inputs.

    Returns:
        Data of these alone, with nothing held out.
    """
    index = torch.from_numpy(rows).to(data.inputs.device)
    return replace(
        data,
        inputs=data.inputs[index],
        targets=None if data.targets is None else data.targets[index],
        held_out_inputs=None,
        held_out_targets=None,
        _digest=[],
    )
