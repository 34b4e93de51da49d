"""`float`: the format that leaves a tensor as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.registry import Family

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "Float"]


@dataclass(frozen=True, kw_only=True)
class Float(Format):
    """Leave the tensor in the precision of the model, counted as 32 bits per value."""

    name: str = "float"

    @property
    def bits(self) -> float:
        """Bits of one stored element."""
        return 32

    @property
    def scale_bits(self) -> float:
        """No scale is stored."""
        return 0

    @property
    def is_float(self) -> bool:
        """True: values are left alone."""
        return True

    @property
    def source(self) -> str:
        """Where the format is defined."""
        return "IEEE 754-2019, binary32; the tensor is not touched"

    @property
    def summary(self) -> str:
        """One line for listings."""
        return "left as it is; counted as 32 bits per value"

    def fake_quantize(self, tensor: Tensor, channel_axis: int | None = 0) -> Tensor:  # noqa: ARG002
        """Return a detached copy of the tensor, which has to be finite as for every format.

        Args:
            tensor: Floating-point values.
            channel_axis: Has no meaning here.

        Returns:
            The copy.

        Raises:
            ModelError: The tensor holds NaN or infinite values.
        """
        from mpsearch.formats.kernels.engine import finite_copy

        return finite_copy(self, tensor)

    def to_grid(self, tensor: Tensor, overflow: Overflow) -> Tensor:  # noqa: ARG002
        """Return a detached copy of the tensor."""
        return tensor.detach().clone()

    def quantizer(
        self, low: float, high: float, block_axis: int = -1
    ) -> Callable[[Tensor], Tensor]:
        """Return the identity: no copy is made and no range is applied."""
        del low, high, block_axis
        return _identity


def _identity(tensor: Tensor) -> Tensor:
    return tensor


FAMILY = Family(
    label="float",
    grammar="float",
    examples=("float",),
    summary="leave the tensor alone",
    parse=lambda name: Float() if name in {"float", "fp32"} else None,
)
