"""LUTs of a matrix-vector unit on an FPGA, as a function of weight and activation bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import Field

from mpsearch.formats import Option
from mpsearch.formats.integer import Integer
from mpsearch.formats.minifloat import Minifloat
from mpsearch.models.layer import Layer
from mpsearch.schemas.document import Record

__all__ = ["FORMULAS", "LutModel"]

FORMULAS = {
    "luts": "300 + 1.1 * P * (mult + addertree + acc + thr + comp) + c2",
    "mult": "Q * (2*ceil((W+A)/6) - 1) * (W+A)   [0 if the multiplier is mapped to DSP]",
    "addertree": "(W+A) * (2*Q - 1)",
    "acc": "min(accumulator_bits, ceil(alpha + log2(1 + 2**-alpha) + 1)), "
    "alpha = log2(MW) + W + A - 1 - signed",
}
"""The formulas that are implemented, as the table of FINN states them: a file is compared with
these before it is taken for the same model."""


@dataclass(frozen=True)
class _Lane:
    """What one multiplier takes.

    Attributes:
        luts: LUTs of the multiplier, shifter included.
        width: Bits of the product that is added up.
        signed: 1 where both operands are signed, which leaves a bit of the product unused.
        exact: Whether the sum must hold every bit of the product.
    """

    luts: int
    width: int
    signed: int
    exact: bool = False


class LutModel(Record):
    """Matrix-vector unit of FINN (Blott et al. 2018, FINN-R, arXiv 1809.04570).

    Multipliers in LUTs, weights in block memory, no activation function in the unit; thresholds
    are left out accordingly. Minifloats, where they are covered, are multiplied exactly and added
    up without rounding in one fixed-point register (Kulisch 2013, "Computer Arithmetic and
    Validity"): FINN's formulas for the product of the significands, the adder tree and the
    accumulator, one LUT for each bit of the exponents' sum and of the sign, and a shifter of 4:1
    multiplexers, one 6-input LUT for each bit and two positions. That part is derived, not fitted
    to synthesis.
    """

    processing_elements: int = Field(default=1, ge=1, description="P, output channels in parallel")
    lanes: int = Field(default=1, ge=1, description="Q, inputs in parallel")
    accumulator_bits: int = Field(default=32, ge=1)
    minifloats: bool = Field(default=False, description="whether minifloats are covered")
    source: str = Field(min_length=1)
    confirmed: str | None = Field(
        default=None, description="where the formulas were read; null: nowhere, or derived"
    )

    def luts(self, layer: Layer, option: Option) -> float | str:
        """Compute the LUTs of one layer's unit.

        Args:
            layer: The layer; its dot products have as many terms as a row of its weight.
            option: Its option.

        Returns:
            LUTs, or why the model does not cover the option.
        """
        lane = self._lane(option)
        if isinstance(lane, str):
            return lane
        multipliers = self.lanes * lane.luts
        tree = lane.width * (2 * self.lanes - 1)
        terms = max(1, layer.weights // layer.weight_shape[0])
        alpha = math.log2(terms) + lane.width - 1 - lane.signed
        growth = math.ceil(alpha + math.log2(1 + 2**-alpha) + 1)
        # The exact register of minifloats is as wide as their range asks.
        accumulator = growth if lane.exact else min(self.accumulator_bits, growth)
        return 300 + 1.1 * self.processing_elements * (multipliers + tree + accumulator)

    def _lane(self, option: Option) -> _Lane | str:
        weight, activation = option.weight, option.activation
        if weight.block is not None or activation.block is not None:
            return f"the LUT model has no scales inside a sum, as {option.name} has"
        if isinstance(weight, Integer) and isinstance(activation, Integer):
            width = weight.width + activation.width
            return _Lane(_product(width), width, int(not activation.asymmetric))
        if isinstance(weight, Minifloat) and isinstance(activation, Minifloat) and self.minifloats:
            return _float_lane(weight, activation)
        covered = "integers, or minifloats on both sides" if self.minifloats else "integers only"
        return f"the LUT model covers {covered}, not {option.name}"


def _product(width: int) -> int:
    """LUTs of a multiplier whose operands have so many bits together."""
    return (2 * math.ceil(width / 6) - 1) * width


def _float_lane(weight: Minifloat, activation: Minifloat) -> _Lane:
    sides = weight.grid, activation.grid
    significands = sum(each.mantissa + 1 for each in sides)
    # Exponents run from that of the subnormals (code 1) to the last code.
    shifts = sum(2**each.exponent - 2 for each in sides)
    width = significands + shifts + 1
    exponents = max(each.exponent for each in sides) + 1
    shifter = width * math.ceil(math.ceil(math.log2(shifts + 1)) / 2) if shifts else 0
    return _Lane(_product(significands) + exponents + shifter + width, width, 0, exact=True)
