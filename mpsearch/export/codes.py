"""Weights as a runtime stores them: codes with scales and zero points, from any scaled format.

What `decode` gives back are the values that the format's fake quantization gives, because the
scales come from the same kernel: nothing is fitted a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.formats import Format, Integer, Minifloat

if TYPE_CHECKING:
    from mpsearch.formats.kernels.blocks import Params

__all__ = ["Codes", "decode", "encode"]


@dataclass(frozen=True)
class Codes:
    """A weight as codes, output channels first.

    Attributes:
        values: Integer codes with the zero point added, int32, or unscaled minifloat values,
            float32; (rows, values per row).
        scales: float32, (rows, blocks per row); one row for a scale per tensor.
        zero_points: int32, of the scales' shape; None for symmetric and floating-point grids.
        block: Values that share a scale; the row's length for one scale per row or tensor.
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None
    block: int


def encode(spec: Format, rows: Tensor) -> Codes:
    """Compute the codes that a format stores for a weight.

    Args:
        spec: Integer or minifloat.
        rows: The float weight, output channels along axis 0.

    Returns:
        Codes, scales and zero points.

    Raises:
        InputError: The format is stored in another way than by codes and scales.
    """
    if not isinstance(spec, (Integer, Minifloat)):
        raise InputError(f"{spec.name} is not stored as codes with one scale per block")
    length = max(1, rows[0].numel()) if rows.shape[0] else 1
    flat = rows.detach().reshape(rows.shape[0], -1).float()
    folded = flat.reshape(1, -1) if spec.per_tensor else flat
    width = folded.shape[1] if spec.block is None else min(spec.block, folded.shape[1])
    blocks, counts = _blocks(folded, width)
    kernel = spec.kernel()
    params = kernel.fit(blocks, counts, kernel.prepare(blocks, counts, folded.shape[0]))
    rounded = torch.empty_like(blocks)
    kernel.round(blocks, params, rounded, torch.empty_like(blocks))
    values, zero_points = _codes(spec, rounded, params)
    shape = folded.shape[0], -1
    return Codes(
        values.reshape(shape)[:, : folded.shape[1]].reshape(flat.shape).contiguous(),
        params[0].reshape(shape),
        None if zero_points is None else zero_points.reshape(shape),
        length if spec.per_tensor else width,
    )


def decode(codes: Codes) -> Tensor:
    """Compute what codes stand for.

    Args:
        codes: Codes of a weight.

    Returns:
        float32, (rows, values per row).
    """
    length = codes.values.shape[1]

    def spread(table: Tensor) -> Tensor:
        return table.repeat_interleave(codes.block, dim=1)[:, :length]

    values = codes.values
    if codes.zero_points is not None:
        values = values - spread(codes.zero_points)
    return values.float() * spread(codes.scales)


def _blocks(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cut rows into blocks, the last one padded with zeros, and count their true values."""
    count, length = rows.shape
    per_row = -(-length // width)
    padded = rows.new_zeros(count, per_row * width)
    padded[:, :length] = rows
    counts = torch.full((count, per_row, 1), width, dtype=torch.int64)
    counts[:, -1] = length - (per_row - 1) * width
    return padded.view(-1, width), counts.view(-1, 1)


def _codes(spec: Format, rounded: Tensor, params: Params) -> tuple[Tensor, Tensor | None]:
    # The rounded value is code x scale up to one rounding, so dividing finds the code again.
    unscaled = rounded / params[0]
    if isinstance(spec, Minifloat):
        return spec.cast(unscaled), None
    codes = unscaled.round().to(torch.int32)
    if isinstance(spec, Integer) and spec.asymmetric:
        zero = (-params[1]).round().to(torch.int32)
        return codes + zero, zero
    return codes, None
