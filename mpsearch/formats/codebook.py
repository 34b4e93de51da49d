"""Codebooks: fixed tables such as NF4, any table of the caller's, and tables learned per row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.formats.base import Format, Overflow, Role
from mpsearch.formats.registry import Family, register

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = [
    "LEARNED_FAMILY",
    "NF4",
    "NF4_FAMILY",
    "Codebook",
    "LearnedCodebook",
    "register_table",
    "table_family",
]

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution, normalised to [-1, 1]: QLoRA, appendix E."""

_SUFFIX = r"(?:_b(\d+))?"


@dataclass(frozen=True, kw_only=True)
class Codebook(Format):
    """Every value is the nearest entry of one table, scaled by the block's largest magnitude.

    Attributes:
        table: Entries in ascending order; the one of largest magnitude meets the largest value.
        size: Values per block.
        citation: Where the table comes from.
    """

    table: tuple[float, ...]
    size: int = 64
    citation: str = "a table given by the caller"

    @property
    def bits(self) -> float:
        """Bits of one stored index."""
        return max(1, math.ceil(math.log2(len(self.table))))

    @property
    def block(self) -> int | None:
        """Values that share one scale along a row."""
        return self.size

    @property
    def scale_bits(self) -> float:
        """A 16-bit scale."""
        return 16

    @property
    def source(self) -> str:
        """Where the table comes from."""
        return self.citation

    @property
    def summary(self) -> str:
        """One line for listings."""
        return f"table of {len(self.table)} values, one 16-bit scale per block of {self.size}"

    def value_grid(self) -> tuple[float, ...] | None:
        """Return the table."""
        return self.table

    def kernel(self) -> BlockKernel:
        """Return the nearest-entry kernel."""
        from mpsearch.formats.kernels.codebook import CodebookKernel

        return CodebookKernel(self.table)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value replaced by the nearest entry; a tie goes to the lower one.

        Args:
            tensor: Floating-point values in units of the table.
            overflow: A table has no code for overflow, so both modes saturate.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            InputError: A value is NaN, for which there is no code.
        """
        from mpsearch.formats.kernels.codebook import cast

        del overflow
        return cast(self, tensor)


@dataclass(frozen=True, kw_only=True)
class LearnedCodebook(Format):
    """A table of 2^k values for each row, learned by k-means on the row's scaled values.

    Attributes:
        width: Bits of an index, 1 to 8.
        size: Values per scale along a row.
    """

    width: int
    size: int = 128

    @property
    def bits(self) -> float:
        """Bits of one stored index."""
        return self.width

    @property
    def block(self) -> int | None:
        """Values that share one scale along a row."""
        return self.size

    @property
    def scale_bits(self) -> float:
        """A 16-bit scale."""
        return 16

    @property
    def row_bits(self) -> float:
        """A table of 16-bit values."""
        return 16 * 2.0**self.width

    @property
    def role(self) -> Role:
        """Weights only: learning a table takes many passes over the values."""
        return "weights"

    @property
    def source(self) -> str:
        """Where the format is defined."""
        return "after any4 (arXiv 2507.04610): tables by unweighted k-means, scales without offset"

    @property
    def summary(self) -> str:
        """One line for listings."""
        return (
            f"{2**self.width} values learned per channel by k-means, one 16-bit scale per block "
            f"of {self.size}"
        )

    def kernel(self) -> BlockKernel:
        """Return the learning kernel."""
        from mpsearch.formats.kernels.codebook import LearnedKernel

        return LearnedKernel(1 << self.width)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Refuse: there is no table before there are values to learn it from.

        Args:
            tensor: Unused.
            overflow: Unused.

        Returns:
            Nothing.

        Raises:
            InputError: Always.
        """
        del tensor, overflow
        raise InputError(f"{self.name} learns its values from a tensor; use fake_quantize")


def register_table(name: str, values: Sequence[float], source: str, block: int = 64) -> None:
    """Make a table of values available as a format `NAME` and `NAME_b{n}`.

    Args:
        name: New name: letters and digits, in lower case.
        values: 2 to 256 distinct finite numbers, at least one of them not zero.
        source: Where the table comes from.
        block: Values per scale unless the name says otherwise.

    Raises:
        InputError: The name or the values cannot be used, or the name is taken.
    """
    family = table_family(name, values, source, block)
    if _is_taken(name):
        raise InputError(
            f"table name {name!r} reads as a format or an option already; choose another"
        )
    register(family)


def _is_taken(name: str) -> bool:
    """Whether a name means something already, be it with numbers out of range."""
    from mpsearch.formats.options import parse_option

    try:
        parse_option(name)
    except UnknownNameError:
        return False
    except InputError:
        return True
    return True


def table_family(name: str, values: Sequence[float], source: str, block: int) -> Family:
    """Return the family of a table without registering it; see `register_table`.

    Args:
        name: Name of the format: letters and digits, in lower case.
        values: 2 to 256 distinct finite numbers.
        source: Where the table comes from.
        block: Values per scale unless the name says otherwise.

    Returns:
        The family.

    Raises:
        InputError: The name or the values cannot be used.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*", name):
        raise InputError(f"table name {name!r}: use lower-case letters and digits")
    table = tuple(sorted(float(value) for value in values))
    if not 2 <= len(set(table)) == len(table) <= 256 or not all(map(math.isfinite, table)):
        raise InputError(f"table {name!r}: give 2 to 256 distinct finite values, not {len(table)}")
    pattern = re.compile(re.escape(name) + _SUFFIX)

    def parse(text: str) -> Format | None:
        match = pattern.fullmatch(text)
        if match is None:
            return None
        size = _size(match[1], text, block)
        return Codebook(name=text, table=table, size=size, citation=source)

    return Family(
        label=name,
        grammar=f"{name}[_b{{n}}]",
        examples=(name,),
        summary=f"table of {len(table)} values per block of {block}",
        parse=parse,
    )


def _size(text: str | None, name: str, default: int) -> int:
    size = int(text) if text else default
    if size < 1:
        raise InputError(f"format {name!r}: a block holds at least one value, not {size}")
    return size


def _parse_learned(name: str) -> Format | None:
    match = re.fullmatch(r"any(\d+)(?:_g(\d+))?", name)
    if match is None:
        return None
    width = int(match[1])
    if not 1 <= width <= 8:
        raise InputError(f"format {name!r}: learned tables have 1 to 8 bits, not {width}")
    return LearnedCodebook(name=name, width=width, size=_size(match[2], name, 128))


NF4_FAMILY = table_family(
    "nf4", NF4, "Dettmers et al. 2023, QLoRA (arXiv 2305.14314), appendix E", 64
)
LEARNED_FAMILY = Family(
    label="learned codebook",
    grammar="any{1..8}[_g{n}]",
    examples=("any3", "any4"),
    summary="a table per channel, learned by k-means; weights only",
    parse=_parse_learned,
)
