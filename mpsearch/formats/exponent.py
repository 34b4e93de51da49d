"""E8M0: the powers of two that scale microscaling blocks. A format of scales, not of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.errors import InputError
from mpsearch.formats.base import Format, Overflow, Role
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "PowerOfTwo"]


@dataclass(frozen=True, kw_only=True)
class PowerOfTwo(Format):
    """2^-127 … 2^127 and NaN: no sign, no zero, no infinity."""

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return 8

    @property
    def scale_bits(self) -> float:
        """No scale is stored: this is one."""
        return 0

    @property
    def role(self) -> Role:
        """Scales only: there is neither a zero nor a sign."""
        return "scales"

    @property
    def source(self) -> str:
        """Where the format is defined."""
        return "OCP Microscaling Formats (MX) Specification 1.0, scale E8M0"

    @property
    def summary(self) -> str:
        """One line for listings."""
        return "powers of two from 2^-127 to 2^127, NaN, no zero and no sign; for scales only"

    def value_grid(self) -> tuple[float, ...] | None:
        """Return every value in ascending order."""
        return tuple(2.0**exponent for exponent in range(-127, 128))

    def fake_quantize(self, tensor: Tensor, channel_axis: int | None = 0) -> Tensor:
        """Refuse: weights and activations have zeros and signs.

        Args:
            tensor: Unused.
            channel_axis: Unused.

        Returns:
            Nothing.

        Raises:
            InputError: Always.
        """
        del tensor, channel_axis
        raise InputError(f"{self.name} has no zero and no sign: use it for scales, through cast")

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value rounded to the nearest power of two; a tie goes up.

        As in ml_dtypes and torch, what lies between 2^-127 and 2^-126 goes up as well.

        Args:
            tensor: Floating-point values.
            overflow: "saturate" to the smallest and largest power, zero included; "ieee": zero
                and overflow become NaN.

        Returns:
            A new tensor of the same shape, dtype and device. NaN and negative values are NaN.
        """
        from mpsearch.formats.kernels.exponent import cast

        return cast(tensor, overflow, self.name)


FAMILY = Family(
    label="power of two",
    grammar="e8m0",
    examples=("e8m0",),
    summary="scales of microscaling blocks; not for layers",
    parse=lambda name: PowerOfTwo(name=name) if name in {"e8m0", "fp8_e8m0"} else None,
)
