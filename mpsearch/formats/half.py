"""16-bit floats, stored without a scale: IEEE binary16 and bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.minifloat import FloatGrid
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["FAMILY", "Half"]


@dataclass(frozen=True, kw_only=True)
class Half(Format):
    """A 16-bit float that is stored as it is: no scale, no calibration.

    Attributes:
        brain: bfloat16 when true, IEEE binary16 otherwise.
    """

    brain: bool

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return 16

    @property
    def scale_bits(self) -> float:
        """No scale is stored."""
        return 0

    @property
    def ranged(self) -> bool:
        """False: the range of the format is its own."""
        return False

    @property
    def grid(self) -> FloatGrid:
        """The values."""
        return FloatGrid(8, 7, 127, "ieee") if self.brain else FloatGrid(5, 10, 15, "ieee")

    @property
    def top(self) -> float:
        """Largest finite value."""
        return self.grid.top

    @property
    def source(self) -> str:
        """Where the format is defined."""
        if self.brain:
            return "Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning (1905.12322)"
        return "IEEE 754-2019, binary16"

    @property
    def summary(self) -> str:
        """One line for listings."""
        layout = "8 exponent and 7" if self.brain else "5 exponent and 10"
        return f"{layout} mantissa bits, largest {self.top:g}, no scale"

    def extremes(self) -> tuple[float, float] | None:
        """Return the largest finite value of either sign."""
        return -self.top, self.top

    def kernel(self) -> BlockKernel:
        """Return the kernel that converts there and back."""
        from mpsearch.formats.kernels.half import HalfKernel

        return HalfKernel(self)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value rounded to 16 bits, ties to even.

        Args:
            tensor: Floating-point values.
            overflow: "saturate" to the largest value, or "ieee" to infinity.

        Returns:
            A new tensor of the same shape, dtype and device. NaN stays NaN.
        """
        from mpsearch.formats.kernels.half import cast

        return cast(self, tensor, overflow)


FAMILY = Family(
    label="half",
    grammar="fp16|bf16",
    examples=("fp16", "bf16"),
    summary="16-bit floats without a scale",
    parse=lambda name: Half(name=name, brain=name == "bf16") if name in {"fp16", "bf16"} else None,
)
