"""Floating-point formats that choose their exponent bits per tensor by squared error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.errors import InputError
from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.granularity import SUFFIXES, Scaled, parse_suffixes
from mpsearch.formats.minifloat import FloatGrid
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["FAMILY", "AutoMinifloat"]


@dataclass(frozen=True, kw_only=True)
class AutoMinifloat(Scaled):
    """ExMy of a given width, x chosen for each tensor.

    Attributes:
        width: Bits of an element, 3 to 8.
    """

    width: int

    @property
    def grids(self) -> tuple[FloatGrid, ...]:
        """The candidates, from fewest exponent bits to most."""
        return tuple(
            FloatGrid(x, self.width - 1 - x, 2 ** (x - 1) - 1) for x in range(1, self.width)
        )

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return self.width

    @property
    def tensor_bits(self) -> float:
        """A byte that says which exponent width was chosen."""
        return 8

    @property
    def adaptive(self) -> bool:
        """True: a range alone does not say which grid fits."""
        return True

    @property
    def source(self) -> str:
        """Where the format is defined."""
        return (
            "Kuzmin et al. 2022, The Power of the Exponent (arXiv 2208.09225); Liu et al. 2023, "
            "LLM-FP4 (arXiv 2310.16836)"
        )

    @property
    def summary(self) -> str:
        """One line for listings."""
        return (
            f"{self.width}-bit floats, exponent bits chosen per tensor by squared error, "
            f"{self.sharing.summary}"
        )

    def kernel(self) -> BlockKernel:
        """Return the choosing kernel."""
        from mpsearch.formats.kernels.automatic import ChoosingKernel

        return ChoosingKernel(self.grids, self.sharing.clip)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Refuse: without a tensor to fit there is no grid.

        Args:
            tensor: Unused.
            overflow: Unused.

        Returns:
            Nothing.

        Raises:
            InputError: Always.
        """
        del tensor, overflow
        raise InputError(f"{self.name} chooses its grid for a tensor; cast with e3m4 or the like")


def _parse(name: str) -> Format | None:
    match = re.fullmatch(r"fp(\d+)_auto(.*)", name)
    sharing = parse_suffixes(match[2], name) if match else None
    if match is None or sharing is None:
        return None
    width = int(match[1])
    if not 3 <= width <= 8:
        raise InputError(f"format {name!r}: exponent bits are chosen for 3 to 8 bits, not {width}")
    return AutoMinifloat(name=name, width=width, sharing=sharing)


FAMILY = Family(
    label="automatic minifloat",
    grammar="fp{3..8}_auto" + SUFFIXES,
    examples=("fp4_auto", "fp6_auto", "fp8_auto", "fp4_auto_mse"),
    summary="exponent bits chosen per tensor by squared error",
    parse=_parse,
)
