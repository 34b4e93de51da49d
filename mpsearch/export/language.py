"""What a target's language has words for: formats, granularities, and their combinations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mpsearch.formats import Format, Half, Integer, Minifloat, Option, get, parse_option
from mpsearch.formats.granularity import Scaled

__all__ = ["FLOAT", "Pair", "Words", "nearest"]

Sharing = Literal["channel", "tensor", "group"]


@dataclass(frozen=True)
class Words:
    """Formats of one tensor that a language has words for.

    Attributes:
        integers: Widths of symmetric integers.
        asymmetric: Widths of integers with a zero point.
        minifloats: Names of minifloats without suffixes, such as `fp8_e4m3`.
        exact: Names of formats that are one thing, such as `mxfp4` or `fp16`.
        sharing: Which values may share a scale.
        groups: Lengths of groups; empty: any.
        clips: Whether a range that leaves outliers out can be said.
        whole: Whether `float`, leaving the tensor alone, is among them.
    """

    integers: tuple[int, ...] = ()
    asymmetric: tuple[int, ...] = ()
    minifloats: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    sharing: tuple[Sharing, ...] = ("channel",)
    groups: tuple[int, ...] = ()
    clips: bool = False
    whole: bool = False

    def covers(self, spec: Format) -> bool:
        """Say whether there is a word for a format.

        Args:
            spec: The format.

        Returns:
            Whether the language can name it.
        """
        if spec.is_float:
            return self.whole
        if any(get(name) == spec for name in self.exact):
            return True
        if isinstance(spec, Integer):
            widths = self.asymmetric if spec.asymmetric else self.integers
            return spec.width in widths and self._shares(spec)
        if isinstance(spec, Minifloat):
            plain = [get(name) for name in self.minifloats]
            return any(
                isinstance(each, Minifloat) and each.grid == spec.grid for each in plain
            ) and self._shares(spec)
        return False

    def _shares(self, spec: Scaled) -> bool:
        sharing = spec.sharing
        if sharing.clip is not None and not self.clips:
            return False
        if sharing.group is not None:
            return "group" in self.sharing and (not self.groups or sharing.group in self.groups)
        return ("tensor" if sharing.whole else "channel") in self.sharing

    def summary(self) -> str:
        """Describe the words in a line.

        Returns:
            Such as `int4, int8 per channel or group (32, 128)`.
        """
        names = [f"int{run}" for run in _runs(self.integers)]
        names += [f"int{run}_asym" for run in _runs(self.asymmetric)]
        names += self.minifloats
        parts = []
        if names:
            how = [
                f"group ({', '.join(map(str, self.groups))})"
                if each == "group" and self.groups
                else each
                for each in self.sharing
            ]
            parts.append(f"{', '.join(names)} per {' or '.join(how)}")
        parts += self.exact
        if self.whole:
            parts.append("float")
        return "; ".join(parts)


FLOAT = Words(sharing=(), whole=True)
"""Nothing but leaving a tensor alone."""


@dataclass(frozen=True)
class Pair:
    """Weights and activations that go together.

    Attributes:
        weights: Formats of weights.
        activations: Formats of inputs; a scale per channel of a weight format means one per tensor
            here, as everywhere for activations.
    """

    weights: Words
    activations: Words = FLOAT

    def covers(self, option: Option) -> bool:
        """Say whether an option is such a pair.

        Args:
            option: The option.

        Returns:
            Whether both formats are covered.
        """
        return self.weights.covers(option.weight) and self.activations.covers(option.activation)


def _runs(widths: tuple[int, ...]) -> list[str]:
    """Write widths that follow one another as `{2..8}`."""
    runs: list[list[int]] = []
    for width in sorted(widths):
        if runs and runs[-1][-1] == width - 1:
            runs[-1].append(width)
        else:
            runs.append([width])
    return [str(r[0]) if len(r) == 1 else f"{{{r[0]}..{r[-1]}}}" for r in runs]


def nearest(option: Option, offered: Iterable[str], count: int = 3) -> list[str]:
    """Choose what comes closest to an option among those that can be expressed.

    Args:
        option: What was asked for.
        offered: Names of options.
        count: How many to name.

    Returns:
        Names, the closest first: by bits of weights, then of activations, then by kind of grid and
        by what shares a scale.
    """
    ranked = sorted(offered, key=lambda name: _distance(option, parse_option(name)))
    return ranked[:count]


def _distance(one: Option, other: Option) -> tuple[float, float, int]:
    unlike = sum(
        (type(a) is not type(b)) * 4
        + (getattr(a, "asymmetric", False) != getattr(b, "asymmetric", False)) * 2
        + (a.block != b.block)
        for a, b in ((one.weight, other.weight), (one.activation, other.activation))
    )
    weights = abs(_width(one.weight) - _width(other.weight))
    activations = abs(_width(one.activation) - _width(other.activation))
    return weights + activations / 4, weights, unlike


def _width(spec: Format) -> float:
    return 16 if isinstance(spec, Half) else spec.bits
