"""Block formats whose scale is a power of two: OCP microscaling (MX) and block floating point."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.errors import InputError
from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.minifloat import FloatGrid
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["BFP_FAMILY", "MX_FAMILY", "BlockFloat", "Microscaling"]

_E4M3 = FloatGrid(4, 3, 7, "fn")
_ELEMENTS = {
    "mxfp8_e4m3": _E4M3,
    "mxfp8_e5m2": FloatGrid(5, 2, 15, "ieee"),
    "mxfp6_e3m2": FloatGrid(3, 2, 3),
    "mxfp6_e2m3": FloatGrid(2, 3, 1),
    "mxfp4": FloatGrid(2, 1, 1),
    "mxfp8": _E4M3,
    "mxfp6": FloatGrid(3, 2, 3),
    "mxfp4_e2m1": FloatGrid(2, 1, 1),
}
_MX_NAME = re.compile(r"(mxfp\d(?:_e\dm\d)?|mxint8)(?:_b(\d+))?")
_BFP_NAME = re.compile(r"bfp(\d+)(?:_b(\d+))?")


@dataclass(frozen=True, kw_only=True)
class _PowerScaled(Format):
    """Blocks along a row, each with an 8-bit power-of-two scale.

    Attributes:
        size: Values per block.
    """

    size: int = 32

    @property
    def block(self) -> int | None:
        """Values that share one scale along a row."""
        return self.size

    @property
    def scale_bits(self) -> float:
        """An E8M0 scale, or shared exponent, of 8 bits."""
        return 8


@dataclass(frozen=True, kw_only=True)
class Microscaling(_PowerScaled):
    """MXFP8, MXFP6, MXFP4: small floats with an E8M0 scale per block.

    Attributes:
        grid: Values of the elements.
    """

    grid: FloatGrid

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return 1 + self.grid.exponent + self.grid.mantissa

    @property
    def source(self) -> str:
        """Where the format is defined."""
        return "OCP Microscaling Formats (MX) Specification 1.0; arXiv 2310.10537"

    @property
    def summary(self) -> str:
        """One line for listings."""
        grid = self.grid
        return (
            f"E{grid.exponent}M{grid.mantissa} elements up to {grid.top:g}, one E8M0 scale per "
            f"block of {self.size}"
        )

    def value_grid(self) -> tuple[float, ...] | None:
        """Return every element value in ascending order, in units of the block scale."""
        return self.grid.values()

    def kernel(self) -> BlockKernel:
        """Return the microscaling kernel."""
        from mpsearch.formats.kernels.microscaling import MicroscalingKernel

        return MicroscalingKernel(self.grid)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value rounded to the nearest element value, without a scale.

        Args:
            tensor: Floating-point values.
            overflow: "saturate", or "ieee" for infinity or NaN where the element has one.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            InputError: A value is NaN and the element has no code for it.
        """
        from mpsearch.formats.kernels.minifloat import cast

        return cast(self.grid, tensor, overflow, self.name)


@dataclass(frozen=True, kw_only=True)
class BlockFloat(_PowerScaled):
    """Integer mantissas with one shared exponent per block; MXINT8 is the 8-bit case of 32.

    Attributes:
        width: Bits of a mantissa, its sign included, 2 to 16.
    """

    width: int
    size: int = 16

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return self.width

    @property
    def top(self) -> int:
        """Largest mantissa; the grid is symmetric, so the most negative code is not used."""
        return (1 << (self.width - 1)) - 1

    @property
    def step(self) -> float:
        """Distance of neighbouring values in units of the block scale."""
        return float(2.0 ** (2 - self.width))

    @property
    def source(self) -> str:
        """Where the format is defined."""
        if self.name.startswith("mx"):
            return "OCP Microscaling Formats (MX) Specification 1.0, element INT8"
        return "Darvish Rouhani et al. 2020, Pushing the Limits of Narrow Precision (MSFP)"

    @property
    def summary(self) -> str:
        """One line for listings."""
        return (
            f"{self.width}-bit mantissas, step {self.step:g} of the block scale, one shared 8-bit "
            f"exponent per block of {self.size}"
        )

    def value_grid(self) -> tuple[float, ...] | None:
        """Return every element value in units of the block scale, up to 8 bits."""
        if self.width > 8:
            return None
        return tuple(q * self.step for q in range(-self.top, self.top + 1))

    def extremes(self) -> tuple[float, float] | None:
        """Return the largest value of either sign, in units of the block scale."""
        return -self.top * self.step, self.top * self.step

    def kernel(self) -> BlockKernel:
        """Return the shared-exponent kernel."""
        from mpsearch.formats.kernels.microscaling import BlockFloatKernel

        return BlockFloatKernel(self.step, self.top)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value rounded to the nearest element value, without a scale.

        Args:
            tensor: Floating-point values.
            overflow: The elements have no code for overflow, so both modes saturate.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            InputError: A value is NaN, for which there is no code.
        """
        from mpsearch.formats.kernels.microscaling import cast

        del overflow
        return cast(self, tensor)


def _size(text: str | None, name: str, default: int) -> int:
    size = int(text) if text else default
    if size < 1:
        raise InputError(f"format {name!r}: a block holds at least one value, not {size}")
    return size


def _parse_mx(name: str) -> Format | None:
    match = _MX_NAME.fullmatch(name)
    if match is None:
        return None
    size = _size(match[2], name, 32)
    if match[1] == "mxint8":
        return BlockFloat(name=name, width=8, size=size)
    grid = _ELEMENTS.get(match[1])
    return None if grid is None else Microscaling(name=name, grid=grid, size=size)


def _parse_bfp(name: str) -> Format | None:
    match = _BFP_NAME.fullmatch(name)
    if match is None:
        return None
    width = int(match[1])
    if not 2 <= width <= 16:
        raise InputError(
            f"format {name!r}: mantissas have 2 to 16 bits, sign included, not {width}"
        )
    return BlockFloat(name=name, width=width, size=_size(match[2], name, 16))


MX_FAMILY = Family(
    label="microscaling",
    grammar="mxfp8[_e4m3|_e5m2]|mxfp6[_e3m2|_e2m3]|mxfp4|mxint8[_b{n}]",
    examples=(
        *("mxfp8", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4"),
        "mxint8",
    ),
    summary="OCP MX: blocks of 32 with a power-of-two scale; mxfp8 is E4M3, mxfp6 E3M2",
    parse=_parse_mx,
)
BFP_FAMILY = Family(
    label="block floating point",
    grammar="bfp{2..16}[_b{n}]",
    examples=("bfp4", "bfp6", "bfp8", "bfp8_b32"),
    summary="integer mantissas with a shared exponent; blocks of 16 unless _b says otherwise",
    parse=_parse_bfp,
)
