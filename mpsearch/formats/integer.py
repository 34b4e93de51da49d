"""Integers of 1 to 16 bits, symmetric or with a zero point, per tensor, channel or group."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.errors import InputError
from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.registry import Family, register

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.engine import BlockKernel

__all__ = ["Integer"]

_NAME = re.compile(r"int(\d+)(_asym)?(?:_g(\d+)|(_tensor)|_channel)?")


@dataclass(frozen=True, kw_only=True)
class Integer(Format):
    """Uniform grid of 2^k - 1 levels around zero, or 2^k levels with a zero point.

    Attributes:
        width: Bits k, 1 to 16; symmetric integers need 2.
        asymmetric: Whether a zero point shifts the grid to [min, max].
        group: Values per scale along a row, or None for a scale per channel.
        whole: One scale for the whole tensor, whatever the channel axis.
    """

    width: int
    asymmetric: bool = False
    group: int | None = None
    whole: bool = False

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return self.width

    @property
    def block(self) -> int | None:
        """Values that share one scale along a row."""
        return self.group

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.whole

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
        kind = "asymmetric, zero point" if self.asymmetric else "symmetric"
        where = "tensor" if self.whole else f"group of {self.group}" if self.group else "channel"
        return f"integers {low} … {high}, {kind}, one 16-bit scale per {where}"

    def value_grid(self) -> tuple[float, ...] | None:
        """Return the integer codes, in units of the scale, up to 8 bits."""
        low, high = self.levels
        return tuple(float(q) for q in range(low, high + 1)) if self.width <= 8 else None

    def kernel(self) -> BlockKernel:
        """Return the integer rounding kernel."""
        from mpsearch.formats.kernels.integer import AsymmetricKernel, SymmetricKernel

        low, high = self.levels
        return AsymmetricKernel(high) if self.asymmetric else SymmetricKernel(high - low)

    def cast(self, tensor: Tensor, overflow: Overflow = "saturate") -> Tensor:
        """Return every value rounded to the nearest code, ties to even, scale one.

        Args:
            tensor: Floating-point values in units of the scale.
            overflow: "saturate" clips to the code range; integers have no infinity, so "ieee"
                is refused.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            InputError: `overflow="ieee"`, or a value is NaN.
        """
        from mpsearch.formats.kernels.integer import cast

        return cast(self, tensor, overflow)


def _parse(name: str) -> Format | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    width, group = int(match[1]), match[3]
    if not 1 <= width <= 16:
        raise InputError(f"format {name!r}: integers have 1 to 16 bits, not {width}")
    if group is not None and int(group) < 1:
        raise InputError(f"format {name!r}: a group holds at least one value, not {group}")
    if width == 1 and not match[2]:
        return None
    return Integer(
        name=name,
        width=width,
        asymmetric=bool(match[2]),
        group=int(group) if group else None,
        whole=bool(match[4]),
    )


register(
    Family(
        label="integer",
        grammar="int{1..16}[_asym][_g{n}|_tensor]",
        examples=(
            "int2",
            "int3",
            "int4",
            "int6",
            "int8",
            "int4_asym",
            "int4_g128",
            "int3_asym_g64",
        ),
        summary="uniform grid; scale per channel, group or tensor",
        parse=_parse,
    )
)
