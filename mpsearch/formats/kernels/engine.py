"""Runs a format's kernel over a tensor: rows, blocks, cache-sized chunks, and checks.

A tensor becomes rows (one per channel), rows become blocks (one per scale), and blocks are
rounded a chunk at a time, over scratch memory that every chunk uses again: fresh memory costs
more than arithmetic, and the result is the only fresh memory that is touched in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.formats.kernels.blocks import BlockKernel, Params, check_floating, non_finite

if TYPE_CHECKING:
    from mpsearch.formats.base import Format

__all__ = ["fake_quantize", "finite_copy", "range_quantizer"]

CHUNK_PER_THREAD = 2**22
"""Values per thread and chunk on a CPU, 16 MiB of float32. Smaller chunks are no faster on idle
cores and many times slower on shared ones, where every step waits for the slowest thread."""

DEVICE_CHUNK = 2**26
"""Values per chunk on other devices, which bounds the temporary buffers only."""


@dataclass(frozen=True)
class _Layout:
    """Blocks of a tensor, and the way back."""

    blocks: Tensor  # (blocks, values per block)
    counts: Tensor | int  # true values per block
    rows: tuple[int, int]  # rows, values per row


def _rows(tensor: Tensor, channel_axis: int | None) -> Tensor:
    if channel_axis is None or tensor.ndim == 0:
        return tensor.reshape(1, -1)
    return tensor.movedim(channel_axis, 0).reshape(tensor.shape[channel_axis], -1)


def _blocks(rows: Tensor, block: int | None) -> _Layout:
    count, length = rows.shape
    if block is None or block >= length:
        return _Layout(rows, length, (count, length))
    per_row, rest = divmod(length, block)
    if rest == 0:
        return _Layout(rows.reshape(-1, block), block, (count, length))
    padded = rows.new_zeros(count, (per_row + 1) * block)
    padded[:, :length] = rows
    counts = torch.full((count, per_row + 1, 1), block, device=rows.device, dtype=torch.int64)
    counts[:, -1] = rest
    return _Layout(padded.view(-1, block), counts.view(-1, 1), (count, length))


def _unblock(blocks: Tensor, layout: _Layout) -> Tensor:
    count, length = layout.rows
    return blocks.view(count, -1)[:, :length]


def fake_quantize(spec: Format, tensor: Tensor, channel_axis: int | None) -> Tensor:
    """Round a tensor to a format, scales fitted to its values; see `Format.fake_quantize`.

    Returns:
        A new contiguous tensor of the same shape, dtype and device.

    Raises:
        InputError: The tensor is not floating point, or has no such axis.
    """
    check_floating(tensor, spec.name)
    if channel_axis is not None and tensor.ndim and not -tensor.ndim <= channel_axis < tensor.ndim:
        raise InputError(f"channel_axis={channel_axis} of a tensor of shape {tuple(tensor.shape)}")
    with torch.no_grad():
        source = tensor.detach()
        if source.numel() == 0:
            return source.clone()
        axis = None if spec.per_tensor else channel_axis
        rows = _rows(source, axis)
        result = _round_rows(spec, rows)
        if axis is None or tensor.ndim == 0:
            return result.reshape(tensor.shape)
        axis %= tensor.ndim
        moved = (tensor.shape[axis], *tensor.shape[:axis], *tensor.shape[axis + 1 :])
        return result.reshape(moved).movedim(0, axis).contiguous()


def finite_copy(spec: Format, tensor: Tensor) -> Tensor:
    """Copy a tensor outside the autograd graph, or raise what a format that rounds would.

    Returns:
        The copy.
    """
    check_floating(tensor, spec.name)
    source = tensor.detach()
    _check_finite(spec, source, bool(source.isfinite().all()))
    return source.clone()


def _check_finite(spec: Format, values: Tensor, finite: bool) -> None:
    if not finite:
        raise non_finite(values, spec.name)


def _round_rows(spec: Format, rows: Tensor, whole: Tensor | None = None) -> Tensor:
    layout = _blocks(rows.contiguous(), spec.block)
    out = torch.empty_like(layout.blocks)
    kernel = spec.kernel()
    if whole is None:
        whole = kernel.prepare(layout.blocks, layout.counts, layout.rows[0])
    _check_finite(spec, rows, _run(kernel, layout, out, whole))
    return _unblock(out, layout)


def _computing(kernel: BlockKernel, dtype: torch.dtype) -> torch.dtype:
    """Type to compute in: float32 unless the values or the format need more."""
    return torch.float64 if kernel.wide or dtype == torch.float64 else torch.float32


def _run(kernel: BlockKernel, layout: _Layout, out: Tensor, whole: Tensor | None) -> bool:
    """Round every block into `out`; False when some value is not finite."""
    blocks = layout.blocks
    count, width = blocks.shape
    compute = _computing(kernel, blocks.dtype)
    if whole is not None and not bool(torch.isfinite(whole).all()):
        return False
    chunk = _chunk_size(blocks)
    if width > chunk:
        return _run_long(kernel, layout, out, whole, chunk)
    step = max(1, chunk // width)
    scratch = _Scratch(min(step, count) * width, blocks, compute)
    for start in range(0, count, step):
        part = blocks[start : start + step].to(compute)
        params = _fit(kernel, part, layout, whole, slice(start, start + step))
        if not bool(torch.isfinite(params[0]).all()):
            return False
        scratch.round_into(kernel, part, params, out[start : start + step])
    return True


def _fit(
    kernel: BlockKernel, part: Tensor, layout: _Layout, whole: Tensor | None, which: slice
) -> Params:
    counts = layout.counts if isinstance(layout.counts, int) else layout.counts[which]
    if whole is not None and whole.shape[0] == layout.blocks.shape[0]:
        whole = whole[which]
    return kernel.fit(part, counts, whole)


def _run_long(
    kernel: BlockKernel, layout: _Layout, out: Tensor, whole: Tensor | None, chunk: int
) -> bool:
    """Round blocks longer than a chunk: parameters of a block first, then its pieces."""
    blocks = layout.blocks
    compute = _computing(kernel, blocks.dtype)
    scratch = _Scratch(chunk, blocks, compute)
    for row in range(blocks.shape[0]):
        line = blocks[row : row + 1]
        params = _fit(kernel, line.to(compute), layout, whole, slice(row, row + 1))
        if not bool(torch.isfinite(params[0]).all()):
            return False
        for start in range(0, line.shape[1], chunk):
            part = line[:, start : start + chunk].to(compute)
            scratch.round_into(kernel, part, params, out[row : row + 1, start : start + chunk])
    return True


class _Scratch:
    """Memory that every chunk of one call writes over."""

    def __init__(self, size: int, like: Tensor, compute: torch.dtype) -> None:
        self._spare = torch.empty(size, dtype=compute, device=like.device)
        self._result = torch.empty_like(self._spare) if like.dtype != compute else None

    def round_into(self, kernel: BlockKernel, part: Tensor, params: Params, target: Tensor) -> None:
        """Round one chunk into its place, converting where the computing type is another."""
        spare = self._spare[: part.numel()].view(part.shape)
        if self._result is None:
            kernel.round(part, params, target, spare)
            return
        result = self._result[: part.numel()].view(part.shape)
        kernel.round(part, params, result, spare)
        # a scale rounded upwards may push the largest value past the narrower type's own maximum
        top = torch.finfo(target.dtype).max
        result.clamp_(-top, top)
        target.copy_(result)


def _chunk_size(tensor: Tensor) -> int:
    if tensor.device.type == "cpu":
        return CHUNK_PER_THREAD * max(1, torch.get_num_threads())
    return DEVICE_CHUNK


def range_quantizer(
    spec: Format, low: float, high: float, block_axis: int
) -> Callable[[Tensor], Tensor]:
    """Return a quantizer of activations with a fixed range; see `Format.quantizer`.

    Raises:
        InputError: The range is not finite, or low is above high.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(
            f"{spec.name}: activations need a finite range with low <= high, "
            f"not [{low}, {high}]; calibrate on data without NaN or infinities"
        )
    if spec.role != "any" or spec.adaptive:
        raise InputError(
            f"{spec.name} cannot round activations to a range: "
            + (f"it is for {spec.role} only" if spec.role != "any" else "resolve its grid first")
        )
    if spec.dynamic:
        return _block_quantizer(spec, block_axis, max(abs(low), abs(high)))
    if spec.ranged and low == high == 0:
        return torch.zeros_like
    return _FixedRange(spec, low, high)


class _FixedRange:
    """Rounds tensors to a grid that was fixed in calibration."""

    def __init__(self, spec: Format, low: float, high: float) -> None:
        self._name = spec.name
        self._kernel = spec.kernel()
        self._ends = low, high
        self._fitted: dict[torch.dtype, Params] = {}
        self._params(_computing(self._kernel, torch.float32))  # a refusal comes now or never

    def __repr__(self) -> str:
        return f"_FixedRange({self._name})"

    def __call__(self, tensor: Tensor) -> Tensor:
        """Round one tensor."""
        check_floating(tensor, self._name)
        with torch.no_grad():
            source = tensor.detach().contiguous()
            compute = _computing(self._kernel, source.dtype)
            params = tuple(p.to(source.device) for p in self._params(compute))
            out = torch.empty_like(source)
            flat, target = source.view(1, -1), out.view(1, -1)
            chunk = _chunk_size(source)
            width = min(chunk, max(1, source.numel()))
            scratch = _Scratch(width, source, compute)
            for start in range(0, source.numel(), chunk):
                part = flat[:, start : start + chunk].to(compute)
                scratch.round_into(self._kernel, part, params, target[:, start : start + chunk])
            return out

    def _params(self, compute: torch.dtype) -> Params:
        if compute not in self._fitted:
            top = torch.finfo(compute).max  # a range of float64 may not fit into float32
            ends = torch.tensor([self._ends], dtype=torch.float64).clamp_(-top, top).to(compute)
            self._fitted[compute] = self._kernel.from_range(ends[:, :1], ends[:, 1:])
        return self._fitted[compute]


def _block_quantizer(spec: Format, block_axis: int, reach: float) -> Callable[[Tensor], Tensor]:
    whole = spec.kernel().prepare_range(reach)

    def quantize(tensor: Tensor) -> Tensor:
        check_floating(tensor, spec.name)
        with torch.no_grad():
            source = tensor.detach()
            if source.numel() == 0:
                return source.clone()
            if source.ndim == 0:
                return _round_rows(spec, source.reshape(1, 1), whole).reshape(())
            moved = source.movedim(block_axis, -1)
            rows = moved.reshape(-1, moved.shape[-1])
            result = _round_rows(spec, rows, whole)
            return result.reshape(moved.shape).movedim(-1, block_axis).contiguous()

    return quantize
