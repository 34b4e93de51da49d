"""Integers of 1 to 16 bits, symmetric or with a zero point, per tensor, channel or group."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.errors import InputError
from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.granularity import SUFFIXES, Scaled, parse_suffixes
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["FAMILY", "Integer"]

_NAME = re.compile(r"int(\d+)(_asym)?(.*)")


@dataclass(frozen=True, kw_only=True)
class Integer(Scaled):
    """Uniform grid of 2^k - 1 levels around zero, or 2^k levels with a zero point.

    Attributes:
        width: Bits k, 1 to 16; symmetric integers need 2.
        asymmetric: Whether a zero point shifts the grid to [min, max].
    """

    width: int
    asymmetric: bool = False

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return self.width

    @property
    def scale_bits(self) -> float:
        """A 16-bit scale, and a zero point of k bits where there is one."""
        return 16 + (self.width if self.asymmetric else 0)

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest code; a symmetric grid leaves -2^(k-1) out."""
        if self.asymmetric:
            return 0, 2**self.width - 1
        return 1 - 2 ** (self.width - 1), 2 ** (self.width - 1) - 1

    @property
    def source(self) -> str:
        """Where the format is defined."""
        return "Jacob et al. 2018 (arXiv 1712.05877); Nagel et al. 2021 (arXiv 2106.08295)"

    @property
    def summary(self) -> str:
        """One line for listings."""
        low, high = self.levels
        kind = "with a zero point" if self.asymmetric else "symmetric"
        return f"integers {low} … {high} {kind}, {self.sharing.summary}"

    def uniform_step(self, low: float, high: float) -> float | None:
        """Return the scale that covers the range."""
        if self.asymmetric:
            return (max(high, 0.0) - min(low, 0.0)) / self.levels[1]
        return max(abs(low), abs(high)) / self.levels[1]

    def value_grid(self) -> tuple[float, ...] | None:
        """Return the integer codes, in units of the scale, up to 8 bits."""
        low, high = self.levels
        return tuple(float(q) for q in range(low, high + 1)) if self.width <= 8 else None

    def extremes(self) -> tuple[float, float] | None:
        """Return the smallest and largest code."""
        low, high = self.levels
        return float(low), float(high)

    def kernel(self) -> BlockKernel:
        """Return the integer rounding kernel."""
        from mpsearch.formats.kernels.clipping import clipped
        from mpsearch.formats.kernels.integer import AsymmetricKernel, SymmetricKernel

        top = self.levels[1]
        kernel = AsymmetricKernel(top) if self.asymmetric else SymmetricKernel(top)
        return clipped(kernel, self.sharing.clip)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value rounded to the nearest code, ties to even, scale one.

        Args:
            tensor: Floating-point values in units of the scale.
            overflow: Integers have no code for overflow, so both modes clip to the code range.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            InputError: A value is NaN, for which there is no code.
        """
        from mpsearch.formats.kernels.integer import cast

        del overflow
        return cast(self, tensor)


def _parse(name: str) -> Format | None:
    match = _NAME.fullmatch(name)
    sharing = parse_suffixes(match[3], name) if match else None
    if match is None or sharing is None:
        return None
    width, asymmetric = int(match[1]), bool(match[2])
    if not 1 <= width <= 16:
        raise InputError(f"format {name!r}: integers have 1 to 16 bits, not {width}")
    if width == 1 and not asymmetric:
        return None  # one symmetric bit has no zero: that is `binary`, another family
    return Integer(name=name, width=width, asymmetric=asymmetric, sharing=sharing)


FAMILY = Family(
    label="integer",
    grammar="int{1..16}[_asym]" + SUFFIXES,
    examples=(
        *("int2", "int3", "int4", "int5", "int6", "int8", "int16"),
        *("int4_asym", "int8_asym", "int4_g128", "int3_asym_g64", "int4_mse", "int8_tensor"),
    ),
    summary="uniform grid around zero, or with a zero point",
    parse=_parse,
)
