"""What a rounding kernel is, and what kernels share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mpsearch.errors import InputError, ModelError

__all__ = [
    "BlockKernel",
    "Params",
    "absmax",
    "bounded_scale",
    "check_floating",
    "ends",
    "largest_within",
    "non_finite",
    "reject_nan",
    "safe_scale",
]

Params = tuple[Tensor, ...]

VECTOR_WIDTH = 32
"""Blocks narrower than this miss torch's vectorised amax; aminmax is then many times faster."""


class BlockKernel(ABC):
    """How one format turns blocks of values into parameters, and values into rounded values.

    Attributes:
        wide: Whether the grid or its scale leaves the range of float32, or is about as fine, so
            that float64 has to be computed in.
    """

    wide: bool = False

    def prepare(self, blocks: Tensor, counts: Tensor | int, rows: int) -> Tensor | None:
        """Return what the fit needs to know beyond its block; most formats need nothing.

        Args:
            blocks: All values, (blocks, values per block).
            counts: True number of values in each block, (blocks, 1), or one number for all.
            rows: Number of rows (channels) that the blocks belong to, in order.

        Returns:
            A tensor with one entry for all blocks, (1, …), or one for each, (blocks, …); finite
            exactly when every value is.
        """
        del blocks, counts, rows
        return None

    def prepare_range(self, reach: float) -> Tensor | None:
        """Return what `prepare` would for values up to `reach`, for activations; mostly nothing."""
        del reach
        return None

    @abstractmethod
    def fit(self, blocks: Tensor, counts: Tensor | int, whole: Tensor | None) -> Params:
        """Return parameters of shape (blocks, …).

        Args:
            blocks: Values, (blocks, values per block); short blocks are padded with zeros.
            counts: True number of values in each block, (blocks, 1), or one number for all.
            whole: What `prepare` returned, for these blocks.

        Returns:
            Parameters, the first of them finite exactly when every value of its block is.
        """

    def from_range(self, low: Tensor, high: Tensor) -> Params:
        """Return parameters of blocks whose values span [low, high], both (blocks, 1).

        Args:
            low: Smallest values.
            high: Largest values.

        Returns:
            As `fit` does.

        Raises:
            NotImplementedError: The scales of this format come from values only.
        """
        raise NotImplementedError(f"{type(self).__name__} fits values, not a range")

    @abstractmethod
    def round(self, values: Tensor, params: Params, out: Tensor, spare: Tensor) -> None:
        """Write rounded values to `out`, saturating at the ends of the grid.

        Args:
            values: Values in the computing type, (blocks, values per block); not changed.
            params: What `fit` returned for these blocks.
            out: Same shape and type as `values`; other memory.
            spare: Same again, to scribble on.
        """


def absmax(blocks: Tensor) -> Tensor:
    """Return the largest magnitude of every block, (blocks, 1); NaN where there is a NaN."""
    low, high = ends(blocks)
    return torch.maximum(low.neg_(), high)


def ends(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value of every block, (blocks, 1) each; NaN propagates."""
    if blocks.shape[1] < VECTOR_WIDTH:
        low, high = torch.aminmax(blocks, dim=1, keepdim=True)
        return low, high
    return blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)


def safe_scale(scale: Tensor) -> Tensor:
    """Replace zero by one and raise subnormal scales to the smallest normal number.

    A subnormal scale has lost bits, so that values at the end of the range would land off the
    grid by more than half a step; the smallest normal scale loses nothing.

    Returns:
        Scales of the same shape, all positive where they were finite.
    """
    tiny = torch.finfo(scale.dtype).tiny
    return torch.where(scale == 0, torch.ones_like(scale), scale.clamp(min=tiny))


def bounded_scale(scale: Tensor, reach: Tensor | float) -> Tensor:
    """Lower a scale whose product with the largest code would overflow.

    The largest magnitude over the largest code is rounded, so that close to the largest finite
    number the way back may end at infinity.

    Args:
        scale: Scales; NaN and infinity come back as they are.
        reach: Largest magnitude of a code, at least one.

    Returns:
        Scales of the same shape, whose product with `reach` is finite where they are.
    """
    most = torch.as_tensor(
        torch.finfo(scale.dtype).max / reach, dtype=scale.dtype, device=scale.device
    )
    # the quotient is rounded too: one step below it the product cannot exceed the maximum
    most = torch.nextafter(most, torch.zeros_like(most))
    return torch.where(torch.isfinite(scale), torch.minimum(scale, most), scale)


def largest_within(dtype: torch.dtype, value: float) -> float:
    """Return the largest number of a type that does not exceed a value.

    Args:
        dtype: A floating-point type.
        value: A positive number, perhaps beyond the type or between two of its numbers.

    Returns:
        The number.
    """
    nearest = torch.tensor(value, dtype=torch.float64).to(dtype)
    if float(nearest) > value:
        nearest = torch.nextafter(nearest, torch.zeros_like(nearest))
    return float(nearest)


def check_floating(tensor: Tensor, what: str) -> None:
    """Raise unless the tensor holds floating-point values.

    Args:
        tensor: The tensor to check.
        what: Name of the format, for the message.

    Raises:
        InputError: The tensor is integer, boolean or complex.
    """
    if not tensor.is_floating_point():
        raise InputError(f"{what} rounds floating-point tensors, not {tensor.dtype}; convert first")


def reject_nan(tensor: Tensor, what: str) -> None:
    """Raise when a format without a code for NaN is given one.

    Args:
        tensor: The values.
        what: Name of the format, for the message.

    Raises:
        InputError: Some value is NaN.
    """
    count = int(torch.isnan(tensor).sum())
    if count:
        raise InputError(
            f"{what} has no code for NaN, and {count} of {tensor.numel()} values are NaN; "
            "replace them first"
        )


def non_finite(tensor: Tensor, what: str) -> ModelError:
    """Return the error that counts the NaN and infinite values of a tensor."""
    nan = int(torch.isnan(tensor).sum())
    inf = int(torch.isinf(tensor).sum())
    way_out = "" if what == "float" else " or leave the layer float"
    return ModelError(
        f"{what} cannot round a tensor of shape {tuple(tensor.shape)} that holds {nan} NaN and "
        f"{inf} infinite values of {tensor.numel()}; repair the values{way_out}"
    )
