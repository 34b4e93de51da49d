"""NVFP4: 4-bit floats with an FP8 scale per block of 16 and a float32 scale per tensor."""

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

__all__ = ["FAMILY", "NvFloat4"]

_NAME = re.compile(r"nvfp4(?:_b(\d+))?")


@dataclass(frozen=True, kw_only=True)
class NvFloat4(Format):
    """E2M1 elements under two levels of scale.

    Attributes:
        size: Values per block.
    """

    size: int = 16

    @property
    def grid(self) -> FloatGrid:
        """Values of the elements."""
        return FloatGrid(2, 1, 1)

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return 4

    @property
    def block(self) -> int | None:
        """Values that share one scale along a row."""
        return self.size

    @property
    def scale_bits(self) -> float:
        """An E4M3 scale of 8 bits."""
        return 8

    @property
    def tensor_bits(self) -> float:
        """A float32 scale for the tensor."""
        return 32

    @property
    def source(self) -> str:
        """Where the format is defined."""
        return "NVIDIA 2025, Pretraining Large Language Models with NVFP4 (arXiv 2509.25149)"

    @property
    def summary(self) -> str:
        """One line for listings."""
        return (
            f"E2M1 elements up to 6, one E4M3 scale per block of {self.size}, one float32 scale "
            "per tensor"
        )

    def value_grid(self) -> tuple[float, ...] | None:
        """Return every element value in ascending order, in units of the block scale."""
        return self.grid.values()

    def kernel(self) -> BlockKernel:
        """Return the two-level kernel."""
        from mpsearch.formats.kernels.nvfp import NvKernel

        return NvKernel(self.grid)

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
        from mpsearch.formats.kernels.minifloat import cast

        return cast(self.grid, tensor, overflow, self.name)


def _parse(name: str) -> Format | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    size = int(match[1] or 16)
    if size < 1:
        raise InputError(f"format {name!r}: a block holds at least one value, not {size}")
    return NvFloat4(name=name, size=size)


FAMILY = Family(
    label="nvfp",
    grammar="nvfp4[_b{n}]",
    examples=("nvfp4",),
    summary="E2M1 under an FP8 scale per block of 16 and a float32 scale per tensor",
    parse=_parse,
)
