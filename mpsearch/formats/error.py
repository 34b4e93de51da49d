"""How far a format moves a tensor: the figures that data-free scores are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.base import Format

__all__ = ["QuantizationError", "quantization_error"]


@dataclass(frozen=True)
class QuantizationError:
    """Error of one rounded tensor, computed in float64.

    Attributes:
        mean_squared: Mean of (rounded - value)^2.
        largest: Largest |rounded - value|.
        signal_to_noise: 10 log10(mean value^2 / mean squared error), in decibels; infinite where
            nothing moved.
    """

    mean_squared: float
    largest: float
    signal_to_noise: float


def quantization_error(
    spec: Format, tensor: Tensor, channel_axis: int | None = 0
) -> QuantizationError:
    """Return the error that a format makes on a tensor.

    Args:
        spec: The format.
        tensor: Floating-point values, not empty.
        channel_axis: As in `Format.fake_quantize`, whose errors apply.

    Returns:
        The figures.
    """
    moved = spec.fake_quantize(tensor, channel_axis).double().sub_(tensor.detach().double())
    noise = float(moved.square().mean())
    signal = float(tensor.detach().double().square().mean())
    ratio = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
    return QuantizationError(noise, float(moved.abs().max()), ratio)
