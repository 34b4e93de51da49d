"""Convolutions of one input with many weights by Winograd's minimal filtering."""

from __future__ import annotations

import functools
import math
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["WinogradConvolution", "suits_winograd"]

KERNEL = 3

FEWEST_CHANNELS = 48
"""Input and output channels from which the transforms take less time than they save (measured)."""

FEWEST_TILES = 32
"""Tiles of all inputs for the same: they share the transforms of a weight."""

CACHED = 10 * 2**20
"""Bytes of a transformed weight that a cache holds; of larger ones, tiles have to be more."""

FEWEST_WEIGHTS = 3
"""Weights for the same: they share the transform of the input."""

MOST_PRODUCTS = 0.5
"""Share of a plain convolution's multiplications that may be left for the same."""

CHUNK = 2**24
"""Bytes of products that are held before they are transformed back."""

INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
WEIGHT = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
OUTPUT = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
"""Transforms along one axis by the side of a tile: F(2, 3) and F(4, 3) of Lavin and Gray."""


def suits_winograd(
    module: nn.Module, inputs: Tensor, weight: Tensor, weights: int
) -> TypeGuard[nn.Conv2d]:
    """Tell whether `WinogradConvolution` computes what a module does, and sooner.

    Args:
        module: The layer.
        inputs: Its input.
        weight: Its weight.
        weights: How many weights the input will be convolved with.

    Returns:
        True for a plain 3 x 3 convolution of stride 1 with enough channels, in float32 or float64
        on a CPU.
    """
    if type(module) is not nn.Conv2d or {"forward", "_conv_forward"} & vars(module).keys():
        return False
    if inputs.ndim != 4 or weights < FEWEST_WEIGHTS or torch.is_autocast_enabled("cpu"):
        return False
    exact = inputs.dtype == weight.dtype and inputs.dtype in {torch.float32, torch.float64}
    fits = (
        module.kernel_size == (KERNEL, KERNEL)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and min(module.in_channels, module.out_channels) >= FEWEST_CHANNELS
    )
    if not (exact and fits and inputs.device.type == weight.device.type == "cpu"):
        return False
    height, width = _output_sides(module, inputs)
    if min(len(inputs), height, width) < 1:
        return False
    side = _side(height, width)
    saves = _products(side, height, width) <= MOST_PRODUCTS * KERNEL**2 * height * width
    transformed = (side + KERNEL - 1) ** 2 * weight[:, :, 0, 0].numel() * weight.element_size()
    fewest = FEWEST_TILES * max(1.0, transformed / CACHED)
    return saves and len(inputs) * _tiles(side, height, width) >= fewest


class WinogradConvolution:
    """A 3 x 3 convolution of stride 1 whose input is transformed once for all weights.

    The output is cut into tiles of m x m, 4 or 2, each of which takes (m + 2)² multiplications per
    pair of channels in place of 9 m². Outputs are `[batch, m², tiles, channels]`: for every place
    within a tile, that place of all tiles.

    Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"
    (arXiv 1509.09308).
    """

    def __init__(self, module: nn.Conv2d, inputs: Tensor) -> None:
        """Transform the input.

        Args:
            module: The layer; its bias is left out.
            inputs: Its input, `[batch, channels, height, width]`; see `suits_winograd`.
        """
        self._batch = len(inputs)
        self._height, self._width = _output_sides(module, inputs)
        self._side = _side(self._height, self._width)
        self._rows = math.ceil(self._height / self._side)
        self._columns = math.ceil(self._width / self._side)
        self._inputs = _transformed(inputs, _padding(module), self._side, self._rows, self._columns)

    def __call__(self, weight: Tensor) -> Tensor:
        """Convolve the input with a weight.

        Args:
            weight: `[output channels, input channels, 3, 3]`.

        Returns:
            The output without bias, arranged; 0 in tiles where they lie beyond its edges.
        """
        channels = len(weight)
        places, tiles = self._side**2, self._rows * self._columns
        flat = weight.reshape(-1, KERNEL**2).t()
        kernels = (_both_axes(WEIGHT[self._side], weight.dtype) @ flat).view(-1, *weight.shape[:2])
        back = _both_axes(OUTPUT[self._side], weight.dtype)
        output = weight.new_empty(places, self._batch * tiles * channels)
        step = max(1, CHUNK // (len(kernels) * channels * weight.element_size()))
        for start in range(0, self._batch * tiles, step):
            products = torch.bmm(self._inputs[:, start : start + step], kernels.transpose(1, 2))
            end = (start + products.shape[1]) * channels
            torch.mm(back, products.flatten(1), out=output[:, start * channels : end])
        self._clear_beyond_edges(output, channels)
        return output.view(places, self._batch, tiles, channels).transpose(0, 1)

    def arranged(self, output: Tensor) -> Tensor:
        """Put a tensor of the output's shape where results of a call lie.

        Args:
            output: `[batch, channels, height, width]`.

        Returns:
            The same values, 0 beyond the edges.
        """
        side, rows, columns = self._side, self._rows, self._columns
        beyond = (0, columns * side - self._width, 0, rows * side - self._height)
        whole = functional.pad(output, beyond) if any(beyond) else output.contiguous()
        tiles = whole.view(self._batch, -1, rows, side, columns, side).permute(3, 5, 0, 2, 4, 1)
        arranged = tiles.reshape(side * side, self._batch, rows * columns, output.shape[1])
        return arranged.transpose(0, 1)

    def _clear_beyond_edges(self, output: Tensor, channels: int) -> None:
        side = self._side
        tiles = output.view(side, side, self._batch, self._rows, self._columns, channels)
        tiles[self._height - (self._rows - 1) * side :, :, :, -1] = 0
        tiles[:, self._width - (self._columns - 1) * side :, :, :, -1] = 0


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    if isinstance(module.padding, str):
        return (1, 1) if module.padding == "same" else (0, 0)
    rows, columns = module.padding
    return rows, columns


def _output_sides(module: nn.Conv2d, inputs: Tensor) -> tuple[int, int]:
    rows, columns = _padding(module)
    height, width = inputs.shape[2:]
    return height + 2 * rows - KERNEL + 1, width + 2 * columns - KERNEL + 1


def _products(side: int, height: int, width: int) -> int:
    """Count multiplications per image and pair of channels."""
    return (side + KERNEL - 1) ** 2 * _tiles(side, height, width)


def _tiles(side: int, height: int, width: int) -> int:
    return math.ceil(height / side) * math.ceil(width / side)


def _side(height: int, width: int) -> int:
    return min(INPUT, key=lambda side: _products(side, height, width))


def _transformed(
    inputs: Tensor, padding: tuple[int, int], side: int, rows: int, columns: int
) -> Tensor:
    """Transform all tiles with their margins, `[(m + 2)², batch · tiles, channels]`."""
    batch, channels, height, width = inputs.shape
    reach = side + KERNEL - 1
    above, left = padding
    below, right = rows * side + KERNEL - 1 - above, columns * side + KERNEL - 1 - left
    margins = (0, 0, left, right - width, above, below - height)
    padded = functional.pad(inputs.permute(0, 2, 3, 1), margins).contiguous()
    image, row, column, _ = padded.stride()
    tiles = padded.as_strided(
        (reach, reach, batch, rows, columns, channels),
        (row, column, image, side * row, side * column, 1),
    )
    transform = _both_axes(INPUT[side], inputs.dtype)
    return (transform @ tiles.reshape(reach * reach, -1)).view(reach * reach, -1, channels)


@functools.cache
def _both_axes(one_axis: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    # Kept for good, so not on a device that is the default only now.
    matrix = torch.tensor(one_axis, dtype=torch.float64, device="cpu")
    return torch.kron(matrix, matrix).to(dtype)
