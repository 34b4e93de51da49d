"""What every numeric format is: a torch-free specification whose kernel is imported on use."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from mpsearch.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.calibration import Method, Statistics
    from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["Format", "Overflow", "Role"]

Overflow = Literal["saturate", "ieee"]
"""What a cast does beyond the largest value: clip, or infinity or NaN where the format has one."""

Role = Literal["any", "weights", "scales"]
"""What a format may be used for: weights and activations, weights alone, or only scales."""


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """A numeric format of one tensor.

    Two formats are equal when they round alike and store alike, whatever they were called:
    `get("e2m1") == get("fp4_e2m1")`.

    Attributes:
        name: The name it was asked for by, in lower case.
    """

    name: str = field(compare=False)

    @property
    @abstractmethod
    def bits(self) -> float:
        """Bits of one stored element, scales apart."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the format is defined."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """One line for listings: values, granularity and scale."""

    @property
    def is_float(self) -> bool:
        """Whether this is the format that leaves values alone."""
        return False

    @property
    def dynamic(self) -> bool:
        """Whether scales of activations come from the values at hand, block by block."""
        return self.block is not None

    @property
    def role(self) -> Role:
        """What the format may be used for."""
        return "any"

    @property
    def adaptive(self) -> bool:
        """Whether the grid itself is chosen from values, so that a range is not enough."""
        return False

    @property
    def ranged(self) -> bool:
        """Whether scales are fitted to a range, so that calibration of activations matters."""
        return not self.is_float

    @property
    def block(self) -> int | None:
        """Values that share one scale along a row; None for whole channels or tensors."""
        return None

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves the whole tensor even where a channel axis is given."""
        return False

    @property
    @abstractmethod
    def scale_bits(self) -> float:
        """Bits stored once per scale: the scale itself, and the zero point where there is one."""

    @property
    def tensor_bits(self) -> float:
        """Bits stored once per tensor, for example a second-level scale."""
        return 0.0

    @property
    def row_bits(self) -> float:
        """Bits stored once per output channel, for example a learned table."""
        return 0.0

    def effective_bits(self, shape: Sequence[int]) -> float:
        """Return the stored bits per element of a tensor of this shape, scales counted.

        Args:
            shape: Shape of the tensor; axis 0 is the channel axis, as in a weight.

        Returns:
            Bits per element. A short last block of a row carries a full scale.
        """
        total = math.prod(shape)
        if total == 0:
            return self.bits
        rows = shape[0] if shape else 1
        if self.per_tensor:
            scales = 1
        else:
            scales = rows * (math.ceil(total // rows / self.block) if self.block else 1)
        overhead = scales * self.scale_bits + rows * self.row_bits + self.tensor_bits
        return self.bits + overhead / total

    def uniform_step(self, low: float, high: float) -> float | None:
        """Return the distance of neighbouring values for a range, or None where it varies.

        Args:
            low: Low end of the range.
            high: High end of the range.

        Returns:
            The step of a uniform grid that covers the range, in the unit of the values.
        """
        del low, high
        return None

    def value_grid(self) -> tuple[float, ...] | None:
        """Return every unscaled value in ascending order, or None where too many to list."""
        return None

    def extremes(self) -> tuple[float, float] | None:
        """Return the smallest and largest unscaled value, or None where values are learned."""
        grid = self.value_grid()
        return None if grid is None else (grid[0], grid[-1])

    def cast(self, tensor: Tensor, overflow: Overflow = "saturate") -> Tensor:
        """Return every value rounded to the nearest of the unscaled grid.

        Args:
            tensor: Floating-point values.
            overflow: What happens beyond the largest value of the grid: "saturate" to it, or
                "ieee": infinity or NaN where the format has a code for one, else saturate.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            UnknownNameError: There is no such way to overflow.
        """
        if overflow not in get_args(Overflow):
            raise UnknownNameError("overflow", overflow, get_args(Overflow))
        return self.to_grid(tensor, overflow)

    @abstractmethod
    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:
        """Return what `cast` does, for an overflow that is known to be one.

        Args:
            tensor: Floating-point values.
            overflow: As in `cast`.

        Returns:
            A new tensor of the same shape, dtype and device.
        """

    def kernel(self) -> BlockKernel:
        """Return the rounding kernel, importing torch.

        Returns:
            The kernel that fits scales to blocks and rounds them.

        Raises:
            NotImplementedError: The format has no block kernel (`float` leaves values alone).
        """
        raise NotImplementedError(f"format {self.name!r} has no rounding kernel")

    def fake_quantize(self, tensor: Tensor, channel_axis: int | None = 0) -> Tensor:
        """Return the tensor with every value replaced by the one the format would store.

        Args:
            tensor: Floating-point values of any shape, on any device.
            channel_axis: Axis whose slices have scales of their own (output channels of a
                weight). Blocks run along `tensor.movedim(channel_axis, 0).reshape(channels, -1)`.
                None: one scale for the tensor, or blocks along the flattened tensor.

        Returns:
            A new tensor of the same shape, dtype and device, outside the autograd graph.

        Raises:
            ModelError: The tensor holds NaN or infinite values; the message counts them.
            InputError: The tensor is not floating point, or has no such axis.
        """
        from mpsearch.formats.kernels.engine import fake_quantize

        return fake_quantize(self, tensor, channel_axis)

    def quantizer(
        self, low: float, high: float, block_axis: int = -1
    ) -> Callable[[Tensor], Tensor]:
        """Return a function that rounds activations, with ranges fixed beforehand.

        Formats with one scale per channel or tensor use the fixed range and saturate outside
        it; nothing is computed from the values seen. Block formats take their block scales from
        the values, as they are defined to. When `low == high == 0` (nothing but zeros was seen
        in calibration) a fixed range holds only zero, so every value becomes zero.

        Args:
            low: Smallest value to represent, from calibration.
            high: Largest value to represent, from calibration.
            block_axis: Axis along which block formats form blocks.

        Returns:
            A function from a tensor to a new tensor of the same shape, dtype and device. NaN
            stays NaN; infinities saturate, except under block formats, which raise ModelError.

        Raises:
            InputError: The range is not finite, or low is above high.
        """
        from mpsearch.formats.kernels.engine import range_quantizer

        return range_quantizer(self, low, high, block_axis)

    def calibrated_range(
        self, statistics: Statistics, method: Method = "minmax", percentile: float = 99.99
    ) -> tuple[float, float]:
        """Return the range to fix for activations; see `calibration.calibrated_range`."""
        from mpsearch.formats.calibration import calibrated_range

        return calibrated_range(self, statistics, method, percentile)

    def calibrated_quantizer(
        self,
        statistics: Statistics,
        method: Method = "minmax",
        percentile: float = 99.99,
        block_axis: int = -1,
    ) -> Callable[[Tensor], Tensor]:
        """Return the activation quantizer; see `calibration.calibrated_quantizer`."""
        from mpsearch.formats.calibration import calibrated_quantizer

        return calibrated_quantizer(self, statistics, method, percentile, block_axis)
