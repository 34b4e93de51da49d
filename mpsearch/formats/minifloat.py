"""Floating-point formats of up to 32 bits with x exponent and y mantissa bits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mpsearch.errors import InputError
from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.granularity import SUFFIXES, Scaled, parse_suffixes
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["FAMILY", "FloatGrid", "Minifloat", "Specials"]

Specials = Literal["none", "fn", "ieee", "fnuz"]
"""Codes that are no numbers: none; one NaN per sign; a top exponent of infinities and NaN; or
the code of negative zero as the only NaN."""

_NAME = re.compile(r"e(\d+)m(\d+)(?:b(\d+))?(?:_(ieee|fnuz|fn))?((?:_(?!ieee|fn).*)?)")

_ALIASES = {
    "fp8_e4m3": "e4m3_fn",
    "fp8_e5m2": "e5m2_ieee",
    "fp6_e3m2": "e3m2",
    "fp6_e2m3": "e2m3",
    "fp4_e2m1": "e2m1",
}

_ALIAS = re.compile(r"(fp\d_e\dm\d)(.*)")


@dataclass(frozen=True)
class FloatGrid:
    """The values of a floating-point format, as numbers.

    Attributes:
        exponent: Exponent bits x, 1 to 8.
        mantissa: Mantissa bits y, 0 to 23.
        bias: What is subtracted from the exponent field.
        specials: Which codes are no numbers.
    """

    exponent: int
    mantissa: int
    bias: int
    specials: Specials = "none"

    @property
    def smallest_normal(self) -> float:
        """2^(1 - bias)."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """Smallest positive value: a subnormal, or the smallest normal without mantissa bits."""
        return 2.0 ** (1 - self.bias - self.mantissa)

    @property
    def emax(self) -> int:
        """Exponent of the largest value."""
        field = (1 << self.exponent) - (2 if self.specials == "ieee" else 1)
        return field - self.bias

    @property
    def top(self) -> float:
        """Largest finite value."""
        fraction = 2.0 - 2.0 ** (-self.mantissa)
        if self.specials == "fn":
            fraction -= 2.0 ** (-self.mantissa)
        return float(fraction * 2.0**self.emax)

    @property
    def has_nan(self) -> bool:
        """Whether some code is NaN."""
        return self.specials != "none"

    @property
    def overflow_value(self) -> float:
        """What a value beyond the largest becomes when it may not saturate."""
        if self.specials == "none":
            return self.top
        return float("inf") if self.specials == "ieee" else float("nan")

    def values(self) -> tuple[float, ...]:
        """Return every finite value in ascending order, zero once."""
        positives = self.positives()
        return (*(-value for value in reversed(positives)), 0.0, *positives)

    def positives(self) -> list[float]:
        """Return every positive finite value in ascending order."""
        values, steps = [], 2**self.mantissa
        for field in range(2**self.exponent):
            for fraction in range(steps):
                lead = fraction if field == 0 else fraction + steps
                value = lead * 2.0 ** (max(field, 1) - self.bias - self.mantissa)
                if 0 < value <= self.top:
                    values.append(value)
        return values


@dataclass(frozen=True, kw_only=True)
class Minifloat(Scaled):
    """A sign, x exponent bits and y mantissa bits, subnormals included.

    Attributes:
        grid: The values.
    """

    grid: FloatGrid

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return 1 + self.grid.exponent + self.grid.mantissa

    @property
    def source(self) -> str:
        """Where the format is defined."""
        published = {
            (4, 3, "fn"): "OCP 8-bit Floating Point Specification 1.0; arXiv 2209.05433",
            (5, 2, "ieee"): "OCP 8-bit Floating Point Specification 1.0; arXiv 2209.05433",
            (3, 2, "none"): "OCP Microscaling Formats Specification 1.0, element FP6 E3M2",
            (2, 3, "none"): "OCP Microscaling Formats Specification 1.0, element FP6 E2M3",
            (2, 1, "none"): "OCP Microscaling Formats Specification 1.0, element FP4 E2M1",
        }
        grid = self.grid
        default = "Kuzmin et al. 2022, FP8 Quantization: The Power of the Exponent (2208.09225)"
        if grid.specials == "fnuz":
            default = "Noune et al. 2022, 8-bit Numerical Formats for DNNs (arXiv 2206.02915)"
        return published.get((grid.exponent, grid.mantissa, grid.specials), default)

    @property
    def summary(self) -> str:
        """One line for listings."""
        grid = self.grid
        codes = {
            "none": "all codes are numbers",
            "fn": "NaN, no infinity",
            "ieee": "infinities and NaN",
            "fnuz": "NaN, no infinity, no negative zero",
        }
        return (
            f"{grid.exponent} exponent and {grid.mantissa} mantissa bits, bias {grid.bias}, "
            f"largest {grid.top:g}, {codes[grid.specials]}, {self.sharing.summary}"
        )

    def value_grid(self) -> tuple[float, ...] | None:
        """Return every finite value in ascending order, up to 8 bits."""
        if self.bits > 8:
            return None
        return self.grid.values()

    def extremes(self) -> tuple[float, float] | None:
        """Return the largest finite value of either sign."""
        return -self.grid.top, self.grid.top

    def kernel(self) -> BlockKernel:
        """Return the floating-point rounding kernel."""
        from mpsearch.formats.kernels.clipping import clipped
        from mpsearch.formats.kernels.minifloat import MinifloatKernel

        return clipped(MinifloatKernel(self.grid), self.sharing.clip)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return every value rounded to the nearest of the grid, ties to even, without a scale.

        Without mantissa bits a tie goes to the larger magnitude, as in the E8M0 of ml_dtypes.

        Args:
            tensor: Floating-point values.
            overflow: "saturate": beyond the largest value comes the largest value. "ieee": comes
                infinity or NaN where the format has one; formats without saturate.

        Returns:
            A new tensor of the same shape, dtype and device. NaN stays NaN.

        Raises:
            InputError: A value is NaN and the format has no code for it.
        """
        from mpsearch.formats.kernels.minifloat import cast

        return cast(self.grid, tensor, overflow, self.name)


def _parse(name: str) -> Format | None:
    alias = _ALIAS.fullmatch(name)
    spelled = _ALIASES.get(alias[1], "") + alias[2] if alias else name
    match = _NAME.fullmatch(spelled)
    sharing = parse_suffixes(match[5], name) if match else None
    if match is None or sharing is None:
        return None
    exponent, mantissa = int(match[1]), int(match[2])
    if (exponent, mantissa) == (8, 0):
        return None  # the format of scales, another family
    specials: Specials = match[4] or "none"  # type: ignore[assignment]
    _check(name, exponent, mantissa, specials)
    usual = 2 ** (exponent - 1) - (specials != "fnuz")
    bias = int(match[3]) if match[3] else usual
    if not usual - 16 <= bias <= usual + 16:
        raise InputError(f"format {name!r}: bias {bias} is more than 16 away from {usual}")
    grid = FloatGrid(exponent, mantissa, bias, specials)
    return Minifloat(name=name, grid=grid, sharing=sharing)


def _check(name: str, exponent: int, mantissa: int, specials: Specials) -> None:
    if not 1 <= exponent <= 8:
        raise InputError(f"format {name!r}: 1 to 8 exponent bits, as in float32, not {exponent}")
    if mantissa > 23:
        raise InputError(
            f"format {name!r}: at most 23 mantissa bits, as in float32, not {mantissa}"
        )
    if specials in {"fn", "ieee"} and mantissa == 0:
        raise InputError(f"format {name!r}: without mantissa bits there is no code for NaN")
    if specials == "ieee" and exponent == 1:
        raise InputError(f"format {name!r}: infinities would leave no normal value")


FAMILY = Family(
    label="minifloat",
    grammar="fp8_e4m3|fp8_e5m2|fp6_e3m2|fp6_e2m3|fp4_e2m1|e{x}m{y}[b{bias}][_fn|_ieee|_fnuz]"
    + SUFFIXES,
    examples=(*_ALIASES, "e3m4", "e2m5", "e4m3", "e3m4_ieee", "e4m3_fnuz", "fp8_e4m3_mse"),
    summary="sign, exponent and mantissa; subnormals; e4m3 reaches 480, fp8_e4m3 448",
    parse=_parse,
)
