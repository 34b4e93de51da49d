"""Binary and ternary weights: one magnitude per channel or group, and signs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.errors import InputError
from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.granularity import Scaled, parse_suffixes
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["FAMILY", "Signs"]

_NAME = re.compile(r"(binary|ternary|int1)(.*)")


@dataclass(frozen=True, kw_only=True)
class Signs(Scaled):
    """A scale times -1 or 1, or -1, 0 or 1, the scale fitted to the magnitudes.

    Attributes:
        ternary: Whether zero is a value.
    """

    ternary: bool

    @property
    def bits(self) -> float:
        """One bit, or 1.6 when five ternary digits are stored in a byte."""
        return 1.6 if self.ternary else 1

    @property
    def source(self) -> str:
        """Where the format is defined."""
        if self.ternary:
            return "Li et al. 2016, Ternary Weight Networks (arXiv 1605.04711)"
        return "Rastegari et al. 2016, XNOR-Net (arXiv 1603.05279)"

    @property
    def summary(self) -> str:
        """One line for listings."""
        if self.ternary:
            how = "scale times -1, 0 or 1; zero below 0.7 of the mean magnitude"
        else:
            how = "scale times the sign; the scale is the mean magnitude"
        return f"{how}, {self.sharing.summary}"

    def value_grid(self) -> tuple[float, ...] | None:
        """Return the values in units of the scale."""
        return (-1.0, 0.0, 1.0) if self.ternary else (-1.0, 1.0)

    def kernel(self) -> BlockKernel:
        """Return the kernel of signs."""
        from mpsearch.formats.kernels.sign import BinaryKernel, TernaryKernel

        return TernaryKernel() if self.ternary else BinaryKernel()

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value rounded to the nearest of the grid, without a scale.

        Args:
            tensor: Floating-point values.
            overflow: There is no code for overflow, so both modes saturate.

        Returns:
            A new tensor of the same shape, dtype and device; zero is +1 in binary.

        Raises:
            InputError: A value is NaN, for which there is no code.
        """
        from mpsearch.formats.kernels.sign import cast

        del overflow
        return cast(self, tensor)


def _parse(name: str) -> Format | None:
    match = _NAME.fullmatch(name)
    sharing = parse_suffixes(match[2], name) if match else None
    if match is None or sharing is None:
        return None
    if sharing.clip is not None:
        raise InputError(f"format {name!r}: the scale is a mean magnitude, which is not clipped")
    return Signs(name=name, ternary=match[1] == "ternary", sharing=sharing)


FAMILY = Family(
    label="sign",
    grammar="binary|ternary[_g{n}|_tensor]",
    examples=("binary", "ternary", "ternary_g128"),
    summary="signs with one magnitude; int1 is binary",
    parse=_parse,
)
