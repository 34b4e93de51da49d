"""Matrices with a scale per block, in the form that scaled products on GPUs take.

Two E2M1 values share a byte, the first in the low half. Scales, a row of them for every row of the
matrix, are padded to 128 rows and 4 columns and stored tile by tile: within a tile of 128 x 4, rows
r, r + 32, r + 64 and r + 96 lie beside each other (NVIDIA, cuBLAS documentation, "1D Block Scaling
Factors Layout"; `SwizzleType.SWIZZLE_32_4_4` of torch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.formats import Microscaling, NvFloat4
from mpsearch.formats.kernels.blocks import BlockKernel

__all__ = ["BlockOperand", "block_operand", "packed_fp4", "swizzled"]

TILE_ROWS = 128
TILE_COLUMNS = 4
LANES = 32
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of E2M1 by the code of their magnitude (OCP Microscaling Specification 1.0, table 5)."""
SIGN = 8


@dataclass(frozen=True)
class BlockOperand:
    """A matrix whose rows are cut into blocks.

    Attributes:
        codes: Rows x inputs of FP8, or rows x inputs / 2 of packed E2M1.
        scales: One for every block, swizzled and padded, one-dimensional: E8M0, or E4M3 for NVFP4.
        whole: The tensor's own float32 scale; None for microscaling formats.
    """

    codes: Tensor
    scales: Tensor
    whole: Tensor | None

    def on(self, device: str | torch.device) -> BlockOperand:
        """Copy the matrix to a device.

        Args:
            device: Where to.

        Returns:
            The copy.
        """
        whole = None if self.whole is None else self.whole.to(device)
        return BlockOperand(self.codes.to(device), self.scales.to(device), whole)


def block_operand(spec: Microscaling | NvFloat4, rows: Tensor) -> BlockOperand:
    """Round a matrix to a block format, with the format's own kernel.

    Args:
        spec: MXFP4, MXFP8 or NVFP4.
        rows: Float32, a multiple of the block along the rows.

    Returns:
        The codes and scales.
    """
    kernel: BlockKernel = spec.kernel()
    blocks = rows.detach().float().reshape(-1, spec.size)
    counts = spec.size
    whole = kernel.prepare(blocks, counts, rows.shape[0])
    params = kernel.fit(blocks, counts, whole)
    rounded = torch.empty_like(blocks)
    kernel.round(blocks, params, rounded, torch.empty_like(blocks))
    elements = (rounded / params[0]).reshape(rows.shape)
    table = params[0].reshape(rows.shape[0], -1)
    if whole is not None:
        scales = swizzled((table / whole).to(torch.float8_e4m3fn))
        return BlockOperand(packed_fp4(elements), scales, whole.reshape(()).float())
    scales = swizzled(table.to(torch.float8_e8m0fnu))
    if spec.bits == 4:
        return BlockOperand(packed_fp4(elements), scales, None)
    ieee = isinstance(spec, Microscaling) and spec.grid.mantissa == 2
    kind = torch.float8_e5m2 if ieee else torch.float8_e4m3fn
    return BlockOperand(elements.to(kind), scales, None)


def packed_fp4(elements: Tensor) -> Tensor:
    """Pack E2M1 values, two in a byte.

    Args:
        elements: Float32 values of the grid, or within a rounding error of them; an even number
            along the rows.

    Returns:
        `torch.float4_e2m1fn_x2`, half as many along the rows.
    """
    grid = torch.tensor(MAGNITUDES, device=elements.device)
    codes = torch.bucketize(elements.abs(), (grid[1:] + grid[:-1]) / 2).to(torch.uint8)
    codes += SIGN * torch.signbit(elements).to(torch.uint8)
    return (codes[:, ::2] | codes[:, 1::2] << 4).contiguous().view(torch.float4_e2m1fn_x2)


def swizzled(scales: Tensor) -> Tensor:
    """Pad and reorder scales.

    Args:
        scales: Rows x blocks, one byte each.

    Returns:
        The same type, one-dimensional.
    """
    rows, columns = scales.shape
    down, across = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    padded = torch.zeros(
        down * TILE_ROWS, across * TILE_COLUMNS, dtype=torch.uint8, device=scales.device
    )
    padded[:rows, :columns] = scales.view(torch.uint8)
    tiles = padded.view(down, TILE_ROWS // LANES, LANES, across, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).flatten().view(scales.dtype)
