"""Rounding to powers of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.formats.kernels.blocks import check_floating

if TYPE_CHECKING:
    from mpsearch.formats.base import Overflow

__all__ = ["cast"]

SMALLEST, LARGEST = 2.0**-127, 2.0**127


def cast(tensor: Tensor, overflow: Overflow, name: str) -> Tensor:
    """Round to the nearest power of two; see `PowerOfTwo.cast`.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    check_floating(tensor, name)
    exact = tensor.detach().double()
    fraction, power = torch.frexp(exact)  # fraction in [0.5, 1)
    power = power.double() - (fraction < 0.75).double()
    rounded = torch.exp2(power.clamp(-1000.0, 1000.0))
    # both float32 libraries round whatever exceeds the smallest power up to the next one
    rounded = torch.where((exact > SMALLEST) & (exact < 2 * SMALLEST), 2 * SMALLEST, rounded)
    rounded = torch.where((exact == 0) | (rounded < SMALLEST), SMALLEST, rounded)
    rounded = torch.where((rounded > LARGEST) | torch.isinf(exact), LARGEST, rounded)
    if overflow == "ieee":
        lost = (exact == 0) | (exact >= 1.5 * LARGEST)
        rounded = torch.where(lost, torch.nan, rounded)
    invalid = torch.isnan(exact) | (exact < 0)
    return torch.where(invalid, torch.nan, rounded).to(tensor.dtype)
