"""Analytic devices: what data sheets state, and the roofline and energy it means for a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from typing import Literal, Self

from pydantic import Field, model_validator

from mpsearch.errors import UnknownNameError
from mpsearch.formats import Format, Option
from mpsearch.formats.half import Half
from mpsearch.formats.integer import Integer
from mpsearch.formats.microscaling import Microscaling
from mpsearch.formats.minifloat import Minifloat
from mpsearch.formats.nvfp import NvFloat4
from mpsearch.hardware.lut_model import LutModel
from mpsearch.models.layer import Layer
from mpsearch.schemas.document import Document, Record

__all__ = ["Device", "Figure", "Widening", "arithmetic_of", "device", "known_devices"]


class Figure(Record):
    """A number with where it stands."""

    value: float = Field(gt=0)
    source: str = Field(min_length=1, description="document and table that states it")
    confirmed: str | None = Field(
        default=None,
        description="where the figure was read; null: the source could not be opened, so take it "
        "with care",
    )


class Widening(Record):
    """Operands that run in a wider arithmetic because a published kernel widens them."""

    operand: Literal["weights", "activations"]
    narrow: list[str] = Field(min_length=1, description="arithmetic names that are widened")
    wide: str = Field(description="arithmetic name that they run at")
    source: str = Field(min_length=1)
    confirmed: str | None = Field(default=None, description="as for a figure")


class OperationEnergy(Record):
    """Energy of arithmetic and of memory traffic, in pJ."""

    integer_multiply: tuple[float, float] = Field(
        description="a, b: a product of w by v bits takes a·w·v + b·(w + v)/2"
    )
    integer_add: float = Field(description="per bit of the accumulator")
    accumulator_bits: int = 32
    multiply: dict[str, float] = Field(default_factory=dict, description="arithmetic -> pJ")
    add: dict[str, float] = Field(default_factory=dict, description="arithmetic -> pJ")
    memory_per_bit: float = Field(description="a bit of weights or activations moved")
    source: str = Field(min_length=1)
    confirmed: str | None = Field(default=None, description="as for a figure")


class Device(Document):
    """A device described by public figures; every one names its source."""

    kind: Literal["device"] = "device"
    name: str = Field(min_length=1)
    summary: str
    peaks: dict[str, Figure] = Field(
        default_factory=dict,
        description="arithmetic (both operands, such as int8), or weights×activations such as "
        "int4×int8 -> dense operations per second; a multiply-accumulate is two",
    )
    bandwidth: Figure | None = Field(
        default=None,
        description="bytes per second of the memory that weights stream from; null: "
        "not published, and traffic takes no time",
    )
    overhead: Figure | None = Field(default=None, description="seconds to launch one layer")
    power: Figure | None = Field(default=None, description="mean watts while computing")
    widenings: list[Widening] = Field(default_factory=list)
    energies: OperationEnergy | None = None
    luts: LutModel | None = None
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for widening in self.widenings:
            if widening.wide not in self.peaks:
                raise ValueError(f"{self.name} widens to {widening.wide}, which has no peak")
        if not self.peaks and self.energies is None and self.luts is None:
            raise ValueError(f"{self.name} has neither peaks nor energies nor a LUT model")
        return self

    @property
    def unconfirmed(self) -> list[str]:
        """Names of the figures whose source could not be opened."""
        figures: dict[str, Figure | Widening | OperationEnergy | LutModel | None] = {
            **{f"peak {name}": figure for name, figure in self.peaks.items()},
            "bandwidth": self.bandwidth,
            "overhead": self.overhead,
            "power": self.power,
            "energies": self.energies,
            "LUT model": self.luts,
            **{f"widening to {each.wide}": each for each in self.widenings},
        }
        return [name for name, each in figures.items() if each and each.confirmed is None]

    @property
    def resources(self) -> dict[str, str]:
        """Resource -> base unit of what this device prices."""
        found = {"latency": "s"} if self.peaks else {}
        found |= {"energy": "J"} if self.energies or self.power else {}
        return found | ({"luts": "LUTs"} if self.luts else {})

    @cached_property
    def _widened(self) -> set[tuple[str, str, str]]:
        return {
            (widening.operand, narrow, widening.wide)
            for widening in self.widenings
            for narrow in widening.narrow
        }

    def peak_of(self, option: Option) -> Figure | str:
        """Find the arithmetic an option runs at.

        Args:
            option: The option.

        Returns:
            Its peak, or why the device cannot run it.
        """
        weight, activation = arithmetic_of(option.weight), arithmetic_of(option.activation)
        if f"{weight}×{activation}" in self.peaks:
            return self.peaks[f"{weight}×{activation}"]
        known = ", ".join(self.peaks)
        sides = (("weights", weight, activation), ("activations", activation, weight))
        for operand, narrow, other in sides:
            if (operand, narrow, other) in self._widened:
                return self.peaks[other]
        if weight == activation and weight in self.peaks:
            return self.peaks[weight]
        hint = ""
        if option.activation.is_float and not option.weight.is_float:
            hint = "; activations are float32 here, write a16 for half precision"
        return (
            f"{self.name} has no units for {weight} weights with {activation} activations "
            f"(it has {known}){hint}"
        )

    def latency(self, layer: Layer, option: Option, batch: int) -> float | str:
        """Compute the roofline of a layer (Williams, Waterman, Patterson 2009).

        Args:
            layer: The layer.
            option: Its option.
            batch: Inputs processed together.

        Returns:
            Seconds: the longer of arithmetic at the peak and memory traffic at the bandwidth, plus
            the overhead of a launch; or why there is none. Layers without multiplications
            (look-ups) take traffic alone.
        """
        seconds = 0.0
        if layer.macs:
            peak = self.peak_of(option)
            if isinstance(peak, str):
                return peak
            seconds = 2.0 * layer.macs * batch / peak.value
        if self.bandwidth is not None:
            seconds = max(seconds, _traffic_bits(layer, option, batch) / 8 / self.bandwidth.value)
        return seconds + (self.overhead.value if self.overhead else 0.0)

    def energy(self, layer: Layer, option: Option, batch: int) -> float | str:
        """Compute the energy of a layer.

        Args:
            layer: The layer.
            option: Its option.
            batch: Inputs processed together.

        Returns:
            Joules: operations and memory traffic where the device has a table of energies, else
            its mean power times the latency; or why there is none.
        """
        if self.energies is None:
            seconds = self.latency(layer, option, batch)
            if isinstance(seconds, str) or self.power is None:
                return seconds if isinstance(seconds, str) else f"{self.name} has no power figure"
            return seconds * self.power.value
        operation = _operation_energy(self.energies, option) if layer.macs else 0.0
        if operation is None:
            return f"{self.name} has no energy for the arithmetic of {option.name}"
        moved = _traffic_bits(layer, option, batch) * self.energies.memory_per_bit
        return (operation * layer.macs * batch + moved) * 1e-12

    def price(self, resource: str, layer: Layer, option: Option, batch: int) -> float | str:
        """Price a layer.

        Args:
            resource: One of `resources`.
            layer: The layer.
            option: Its option.
            batch: Inputs processed together.

        Returns:
            Cost in the base unit, or why there is none.

        Raises:
            UnknownNameError: The device does not price this resource.
        """
        if resource not in self.resources:
            raise UnknownNameError(f"resource of {self.name}", resource, self.resources)
        if resource == "luts":
            assert self.luts is not None
            return self.luts.luts(layer, option)
        compute = self.latency if resource == "latency" else self.energy
        return compute(layer, option, batch)


def arithmetic_of(spec: Format) -> str:
    """Name the arithmetic that a format's elements need.

    Args:
        spec: The format.

    Returns:
        `int8`, `fp32`, `fp16`, `bf16`, `fp8`, `fp6`, `fp4`, `mxfp8`, `nvfp4` …; the format's own
        name where no arithmetic unit is known for it (codebooks, or integers whose scale changes
        along the sum).
    """
    if spec.is_float:
        return "fp32"
    if isinstance(spec, Half):
        return "bf16" if spec.brain else "fp16"
    if isinstance(spec, NvFloat4):
        return "nvfp4"
    if isinstance(spec, Microscaling):
        return f"mxfp{spec.bits:g}" if spec.size == 32 else spec.name
    if isinstance(spec, Integer) and spec.block is None:
        return f"int{spec.width}"
    if isinstance(spec, Minifloat) and spec.block is None:
        published = (spec.grid.exponent, spec.grid.mantissa, spec.grid.specials)
        return "fp8" if published in {(4, 3, "fn"), (5, 2, "ieee")} else spec.name
    return spec.name


def _traffic_bits(layer: Layer, option: Option, batch: int) -> float:
    """Weights once, inputs and outputs once; a look-up reads only the rows it returns."""
    entering, leaving = (
        math.prod(shape[1:]) * batch for shape in (layer.input_shape, layer.output_shape)
    )
    per_weight = option.weight.effective_bits(layer.weight_shape)
    if not layer.macs:
        return leaving * (per_weight + option.activation.bits)
    return layer.weights * per_weight + (entering + leaving) * option.activation.bits


def _operation_energy(table: OperationEnergy, option: Option) -> float | None:
    weight, activation = option.weight, option.activation
    if isinstance(weight, Integer) and isinstance(activation, Integer):
        square, linear = table.integer_multiply
        product = square * weight.width * activation.width
        product += linear * (weight.width + activation.width) / 2
        return product + table.integer_add * table.accumulator_bits
    name = arithmetic_of(weight)
    if name == arithmetic_of(activation) and name in table.multiply and name in table.add:
        return table.multiply[name] + table.add[name]
    return None


def known_devices() -> list[str]:
    """List the devices that are shipped.

    Returns:
        Their names.
    """
    return sorted(_shipped())


def device(name: str) -> Device:
    """Load a shipped device.

    Args:
        name: Its name.

    Returns:
        The device.

    Raises:
        UnknownNameError: None is called so.
    """
    found = _shipped()
    if name not in found:
        raise UnknownNameError(
            "hardware", name, found, "A cost table's path may stand here too: ./table.json"
        )
    return Device.parse(found[name], f"device {name}")


def _shipped() -> Mapping[str, str]:
    folder = resources.files("mpsearch.hardware") / "devices"
    return {
        entry.name.removesuffix(".json"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    }
