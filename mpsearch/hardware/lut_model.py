"""LUTs of a matrix-vector unit on an FPGA, as a function of weight and activation bits."""

from __future__ import annotations

import math

from pydantic import Field

from mpsearch.formats import Option
from mpsearch.formats.integer import Integer
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


class LutModel(Record):
    """Matrix-vector unit of FINN (Blott et al. 2018, FINN-R, arXiv 1809.04570), integers only.

    Multipliers in LUTs, weights in block memory, no activation function in the unit; thresholds
    are left out accordingly.
    """

    processing_elements: int = Field(default=1, ge=1, description="P, output channels in parallel")
    lanes: int = Field(default=1, ge=1, description="Q, inputs in parallel")
    accumulator_bits: int = Field(default=32, ge=1)
    source: str = Field(min_length=1)

    def luts(self, layer: Layer, option: Option) -> float | str:
        """Compute the LUTs of one layer's unit.

        Args:
            layer: The layer; its dot products have as many terms as a row of its weight.
            option: Its option.

        Returns:
            LUTs, or why the model does not cover the option.
        """
        weight, activation = option.weight, option.activation
        if not (isinstance(weight, Integer) and isinstance(activation, Integer)):
            return f"the LUT model covers integers only, not {option.name}"
        if weight.block is not None or activation.block is not None:
            return f"the LUT model has no scales inside a sum, as {option.name} has"
        width = weight.width + activation.width
        signed = int(not activation.asymmetric)
        multipliers = self.lanes * (2 * math.ceil(width / 6) - 1) * width
        tree = width * (2 * self.lanes - 1)
        terms = max(1, layer.weights // layer.weight_shape[0])
        alpha = math.log2(terms) + width - 1 - signed
        growth = math.ceil(alpha + math.log2(1 + 2**-alpha) + 1)
        accumulator = min(self.accumulator_bits, growth)
        return 300 + 1.1 * self.processing_elements * (multipliers + tree + accumulator)
