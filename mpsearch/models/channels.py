"""How a stored weight lies as rows of output channels, which is what formats quantize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ChannelLayout"]


@dataclass(frozen=True)
class ChannelLayout:
    """A rearrangement of a weight that puts its output channels first.

    Attributes:
        stored: Shape of the stored weight.
        split: Shape to view it as.
        order: Permutation of `split` that puts the channel axes first.
        channels: How many axes of the permuted view count channels.
    """

    stored: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    channels: int = 1

    @classmethod
    def plain(cls, shape: tuple[int, ...]) -> ChannelLayout:
        """Return the layout of a weight whose axis 0 counts output channels already."""
        return cls(shape, shape, tuple(range(len(shape))))

    @classmethod
    def channels_last(cls, shape: tuple[int, ...]) -> ChannelLayout:
        """Return the layout of a matrix stored as (in, out)."""
        return cls(shape, shape, tuple(reversed(range(len(shape)))))

    @classmethod
    def transposed(cls, shape: tuple[int, ...], groups: int) -> ChannelLayout:
        """Return the layout of a transposed convolution, (in, out / groups, kernel …).

        Output channel g·(out/groups) + j is made of the slices [g·(in/groups) :, j] of group g
        alone, so the groups have to be told apart before the axes are exchanged.

        Args:
            shape: Shape of the weight.
            groups: Groups of the convolution.

        Returns:
            The layout.
        """
        if len(shape) < 2:
            return cls.plain(shape)
        split = (groups, shape[0] // groups, *shape[1:])
        return cls(shape, split, (0, 2, 1, *range(3, len(split))), 2)

    @classmethod
    def bank(cls, shape: tuple[int, ...], output_axis: int) -> ChannelLayout:
        """Return the layout of a bank of experts, whose channels are counted in every expert.

        Args:
            shape: Shape of the bank, (experts, …, …).
            output_axis: Axis of the output channels, 1 or 2.

        Returns:
            The layout.
        """
        return cls(shape, shape, (0, output_axis, 3 - output_axis), 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rearranged weight: all output channels, then the values of each."""
        moved = [self.split[axis] for axis in self.order]
        return (math.prod(moved[: self.channels]), *moved[self.channels :])

    def rows(self, weight: Tensor) -> Tensor:
        """Rearrange a weight.

        Args:
            weight: In the stored shape.

        Returns:
            The same values, output channels first; a view where that is possible.
        """
        return weight.reshape(self.split).permute(self.order).reshape(self.shape)

    def restore(self, rows: Tensor) -> Tensor:
        """Undo `rows`.

        Args:
            rows: In the rearranged shape.

        Returns:
            The same values in the stored shape.
        """
        moved = rows.reshape([self.split[axis] for axis in self.order])
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return moved.permute(back).reshape(self.stored)
