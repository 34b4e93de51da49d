"""Rounding a layer's input with the range found in calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.formats import Format, Scaled
from mpsearch.formats.calibration import Method, Statistics, calibrated_range, resolve

__all__ = [
    "MINMAX",
    "ActivationQuantizer",
    "KnownRange",
    "RangeRule",
    "needs_histogram",
    "settled",
]


@dataclass(frozen=True)
class RangeRule:
    """How a range is chosen from what was observed.

    Attributes:
        method: `minmax`, `percentile`, or `mse`: the range of least mean squared error.
        percentile: For `percentile`: share of the values kept on each side, in percent.
    """

    method: Method = "minmax"
    percentile: float = 99.99


MINMAX = RangeRule()


@dataclass(frozen=True)
class KnownRange:
    """What is kept of a layer's input once its histogram is gone.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        settled: For each format that clips or chooses its grid: the grid and both ends.
    """

    low: float
    high: float
    settled: Mapping[Format, tuple[Format, float, float]]


def needs_histogram(activation_format: Format) -> bool:
    """Tell whether the extremes of an input do not settle a format's range.

    Args:
        activation_format: Format of the activations.

    Returns:
        True for formats that clip (`int8_p99.9`, `int8_mse`) or choose their grid (`fp8_auto`).
        Blocks of values are clipped as they come, so formats with groups are not among them.
    """
    clips = isinstance(activation_format, Scaled) and activation_format.sharing.clip is not None
    return activation_format.adaptive or (clips and not activation_format.dynamic)


def settled(
    activation_format: Format, seen: Statistics | KnownRange | tuple[float, float], rule: RangeRule
) -> tuple[Format, float, float]:
    """Choose the grid and the range for a format.

    Args:
        activation_format: Format of the activations.
        seen: What was observed, or a range that was chosen before and is kept.
        rule: How the range is chosen from what was observed.

    Returns:
        The format, an automatic one replaced by its best candidate, and both ends of the range.

    Raises:
        InputError: The format chooses its range from a histogram, and only extremes were kept.
    """
    if not isinstance(seen, Statistics):
        known = seen if isinstance(seen, KnownRange) else KnownRange(*seen, {})
        if activation_format in known.settled:
            return known.settled[activation_format]
        if needs_histogram(activation_format):
            raise InputError(
                f"{activation_format.name} chooses its range from how the values are spread, and "
                "of this calibration only their extremes were kept; give the data again (data=…)"
            )
        return activation_format, known.low, known.high
    found = resolve(activation_format, seen, rule.method, rule.percentile)
    return found, *calibrated_range(found, seen, rule.method, rule.percentile)


class ActivationQuantizer:
    """Rounds tensors to a format within a fixed range; can be copied and pickled.

    Where gradients are recorded, the rounding has the gradient of the identity inside the range
    and none outside (straight-through estimator; Bengio et al. 2013, arXiv 1308.3432).
    """

    def __init__(self, activation_format: Format, low: float, high: float) -> None:
        """Fix format and range.

        Args:
            activation_format: Format of the activations.
            low: Smallest value to represent.
            high: Largest value to represent.
        """
        self._format = activation_format
        self._range = low, high
        self._by_axis: dict[int, Callable[[Tensor], Tensor]] = {}
        # Fails here, not in the middle of a forward pass, where the format does not take ranges.
        self._rounding(-1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the functions, which are made again when needed."""
        return {**self.__dict__, "_by_axis": {}}

    def __call__(self, values: Tensor, axis: int = -1) -> Tensor:
        """Round.

        Args:
            values: Activations of any shape.
            axis: Axis that the weight contracts, along which block formats form their blocks.

        Returns:
            A tensor of the same shape and type.
        """
        if torch.is_grad_enabled() and values.requires_grad:
            bounds = (-math.inf, math.inf) if self._format.dynamic else self._range
            rounded: Tensor = _StraightThrough.apply(values, self._rounding(axis), *bounds)
            return rounded
        return self._rounding(axis)(values)

    def _rounding(self, axis: int) -> Callable[[Tensor], Tensor]:
        if axis not in self._by_axis:
            self._by_axis[axis] = self._format.quantizer(*self._range, block_axis=axis)
        return self._by_axis[axis]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        values: Tensor,
        rounding: Callable[[Tensor], Tensor],
        low: float,
        high: float,
    ) -> Tensor:
        ctx.save_for_backward((values >= low) & (values <= high))
        return rounding(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None
