"""Which values share a scale, and how its range is chosen: the suffixes of plain formats."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mpsearch.errors import InputError
from mpsearch.formats.base import Format

__all__ = ["SUFFIXES", "Clip", "Scaled", "Sharing", "parse_suffixes"]

SUFFIXES = "[_g{n}|_tensor][_mse|_p{percent}]"

_SUFFIX = re.compile(r"(?:_g(\d+)|(_tensor)|_channel)?(?:(_mse)|_p(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Clip:
    """How much of the range of a block its scale covers; what lies outside saturates.

    Attributes:
        percentile: Share of the magnitudes to cover, in percent; None searches the range of
            least mean squared error over a grid of clip ratios.
    """

    percentile: float | None = None

    @property
    def summary(self) -> str:
        """A few words for listings."""
        if self.percentile is None:
            return "range of least squared error"
        return f"range of the {self.percentile:g}th percentile"


@dataclass(frozen=True)
class Sharing:
    """Which values share a scale, and how its range is chosen.

    Attributes:
        group: Values per scale along a row, or None for a scale per channel.
        whole: One scale for the whole tensor, whatever the channel axis.
        clip: How the range is clipped, or None to cover every value.
    """

    group: int | None = None
    whole: bool = False
    clip: Clip | None = None

    @property
    def summary(self) -> str:
        """A few words for listings."""
        where = "tensor" if self.whole else f"group of {self.group}" if self.group else "channel"
        return f"one 16-bit scale per {where}" + (f", {self.clip.summary}" if self.clip else "")


@dataclass(frozen=True, kw_only=True)
class Scaled(Format):
    """A format with one fitted scale per tensor, channel or group.

    Attributes:
        sharing: Which values share a scale.
    """

    sharing: Sharing = Sharing()

    @property
    def block(self) -> int | None:
        """Values that share one scale along a row."""
        return self.sharing.group

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.sharing.whole

    @property
    def scale_bits(self) -> float:
        """A 16-bit scale."""
        return 16


def parse_suffixes(text: str, name: str) -> Sharing | None:
    """Read the part of a name that says how scales are shared.

    Args:
        text: What follows the element, for example `_g128_mse`; may be empty.
        name: The whole name, for messages.

    Returns:
        The sharing, or None when the text follows no rule.

    Raises:
        InputError: A group of no values, or a percentile outside (0, 100].
    """
    match = _SUFFIX.fullmatch(text)
    if match is None:
        return None
    group = int(match[1]) if match[1] else None
    if group is not None and group < 1:
        raise InputError(f"format {name!r}: a group holds at least one value, not {group}")
    percentile = float(match[4]) if match[4] else None
    if percentile is not None and not 0 < percentile <= 100:
        raise InputError(f"format {name!r}: a percentile is above 0 and at most 100")
    clip = Clip(percentile) if match[3] or percentile is not None else None
    return Sharing(group=group, whole=bool(match[2]), clip=clip)
