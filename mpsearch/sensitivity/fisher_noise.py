"""Mean squared quantization error of weights and inputs, by steps or as measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mpsearch.formats import Format
from mpsearch.models.layers import Layer
from mpsearch.quantize import weight_deviation
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.taps import Call

__all__ = ["Noise", "is_measured", "no_noise", "note_noise"]


def is_measured(task: ScoringTask) -> bool:
    """Say whether noise is measured: where an offered format has no uniform step.

    Args:
        task: Its options.

    Returns:
        Whether some format has none.
    """
    formats = [*task.weight_formats, *task.activation_formats]
    return any(fmt.uniform_step(-1.0, 1.0) is None for fmt in formats)


def no_noise(layers: int, formats: int) -> dict[str, NDArray[np.float64]]:
    """Make the figures of nothing.

    Args:
        layers: How many layers.
        formats: How many activation formats.

    Returns:
        `low` and `high`, the range of every layer's input; `count`, its elements; `squares`, the
        sum of (Q(x) - x)² for every layer and format.
    """
    return {
        "low": np.full(layers, np.inf),
        "high": np.full(layers, -np.inf),
        "count": np.zeros(layers),
        "squares": np.zeros((layers, formats)),
    }


def note_noise(
    figures: Mapping[str, NDArray[np.float64]], task: ScoringTask, row: int, call: Call
) -> None:
    """Add one call of a layer to figures.

    Args:
        figures: As `no_noise` makes them; changed.
        task: Formats and quantizer.
        row: Number of the layer.
        call: The call.
    """
    values = call.take()
    if not values.numel():
        return  # an expert that nothing was sent to
    low, high = (float(x) for x in torch.aminmax(values))
    figures["low"][row] = min(low, figures["low"][row])
    figures["high"][row] = max(high, figures["high"][row])
    figures["count"][row] += values.numel()
    for column, fmt in enumerate(task.activation_formats if is_measured(task) else []):
        moved = task.quantizer.activation(call.layer, fmt)(values, call.axis) - values
        figures["squares"][row, column] += float(moved.double().square().sum())


class Noise:
    """What formats do to weights and inputs."""

    def __init__(self, task: ScoringTask, figures: Mapping[str, NDArray[np.float64]]) -> None:
        """Take what was seen of the inputs.

        Args:
            task: Formats and quantizer.
            figures: As `no_noise` makes them, over all the data.
        """
        self._task, self._figures = task, figures
        self._measured = is_measured(task)

    def weight(self, layer: Layer, fmt: Format) -> float:
        """Compute the noise of a weight.

        Args:
            layer: The layer.
            fmt: Its format.

        Returns:
            The squared step, or the mean squared error.
        """
        if self._measured:
            moved = weight_deviation(self._task.quantizer, layer, fmt)
            return float(moved.double().square().mean())
        weight = self._task.quantizer.original(layer.name)
        low, high = (float(x) for x in torch.aminmax(weight))
        return _step_squared(fmt, low, high)

    def activation(self, row: int, fmt: Format) -> float:
        """Compute the noise of a layer's input.

        Args:
            row: Number of the layer.
            fmt: Its format.

        Returns:
            The squared step, or the mean squared error; 0 for an input that nobody saw.
        """
        count = float(self._figures["count"][row])
        if not count:
            return 0.0
        if self._measured:
            column = self._task.activation_formats.index(fmt)
            return float(self._figures["squares"][row, column]) / count
        low, high = float(self._figures["low"][row]), float(self._figures["high"][row])
        return _step_squared(fmt, low, high)


def _step_squared(fmt: Format, low: float, high: float) -> float:
    return float(((high - low) / (2.0**fmt.bits - 1)) ** 2)
