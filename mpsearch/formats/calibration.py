"""Ranges of activations: observed once per data set, then turned into a range for every format.

An observer keeps the extremes and a histogram. The bins are as wide as a power of two and start
at its multiples, so bins merge without remainder when the range grows, and the result does not
depend on how the data were cut into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mpsearch.errors import DataError, InputError, UnknownNameError
from mpsearch.formats.automatic import AutoMinifloat
from mpsearch.formats.granularity import Scaled
from mpsearch.formats.minifloat import Minifloat

if TYPE_CHECKING:
    from torch import Tensor

    from mpsearch.formats.base import Format

__all__ = [
    "Method",
    "Observer",
    "Statistics",
    "calibrated_quantizer",
    "calibrated_range",
    "expected_error",
    "resolve",
]

Method = Literal["minmax", "percentile", "mse"]
"""Cover every value seen; a share of them; or what makes the mean squared error least."""

BINS = 2048
FINEST_SHARE = 2.0**-30
"""Least bin width as a share of the largest magnitude, which keeps bin numbers exact."""

WIDEST_SEARCH = 12
"""Bits beyond which clipping is not searched: the histogram is coarser than the format's step."""

POINTS_PER_BIN = 8
"""Values tried within a bin, over which its count is spread evenly."""

RATIOS = tuple(0.95**step for step in range(81))
"""Shares of the full range that the search tries: geometric, since one outlier of activations may
stretch the range sixty-fold."""

OBSERVED_CHUNK = 2**22
"""Values sorted into bins at a time, which bounds the memory of observing."""


@dataclass(frozen=True)
class Statistics:
    """What was seen of one tensor over a data set.

    Attributes:
        count: Number of values.
        zeros: How many of them are exactly zero, as half of them are after a ReLU.
        low: Smallest value.
        high: Largest value.
        bin_width: Width of a bin, a power of two.
        first_bin: Number of the first bin: it starts at `first_bin * bin_width`.
        counts: Values per bin; the last bin holds the largest value.
    """

    count: int
    zeros: int
    low: float
    high: float
    bin_width: float
    first_bin: int
    counts: tuple[int, ...]

    @property
    def reach(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def quantile(self, share: float) -> float:
        """Return the value below which that share of the values lies.

        Args:
            share: Between 0 and 1.

        Returns:
            The quantile, interpolated within its bin and never outside [low, high].
        """
        wanted, below = share * self.count, 0
        for index, number in enumerate(self.counts):
            if number and below + number >= wanted:
                part = (wanted - below) / number
                value = (self.first_bin + index + part) * self.bin_width
                return min(max(value, self.low), self.high)
            below += number
        return self.high


class Observer:
    """Collects the statistics of one tensor, batch by batch.

    Example:
        ```python
        observer = Observer()
        for batch in batches:
            observer.observe(layer_input(batch))
        statistics = observer.statistics()
        ```
    """

    def __init__(self, bins: int = BINS) -> None:
        """Start with nothing seen.

        Args:
            bins: Largest number of bins of the histogram.

        Raises:
            InputError: Fewer than two bins.
        """
        if bins < 2:
            raise InputError(f"a histogram needs at least 2 bins, not {bins}")
        self._bins = bins
        self._count = 0
        self._zeros = 0
        self._low = math.inf
        self._high = -math.inf
        self._exponent = 0
        self._first = 0
        self._counts: Tensor | None = None

    def observe(self, tensor: Tensor) -> None:
        """Add the values of a batch.

        Args:
            tensor: Floating-point values of any shape; an empty tensor adds nothing.

        Raises:
            DataError: Some value is NaN or infinite; nothing of the batch is added.
        """
        import torch

        with torch.no_grad():
            values = tensor.detach().reshape(-1)
            if values.numel() == 0:
                return
            ends = torch.stack(torch.aminmax(values)).tolist()
            if not all(map(math.isfinite, ends)):
                nan, inf = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
                raise DataError(
                    f"calibration met {nan} NaN and {inf} infinite values in an activation of "
                    f"shape {tuple(tensor.shape)}; check the data and the float model"
                )
            self._count += values.numel()
            self._low, self._high = min(self._low, ends[0]), max(self._high, ends[1])
            self._grow()
            assert self._counts is not None
            width = math.ldexp(1.0, self._exponent)
            self._zeros += int((values == 0).sum())
            for start in range(0, values.numel(), OBSERVED_CHUNK):
                part = values[start : start + OBSERVED_CHUNK].double() / width
                index = part.floor_().long().sub_(self._first)
                self._counts += torch.bincount(index, minlength=self._counts.numel()).cpu()

    def statistics(self) -> Statistics:
        """Return what was seen so far.

        Returns:
            Statistics without any tensor in them.

        Raises:
            DataError: Nothing was seen.
        """
        if self._counts is None:
            raise DataError(
                "calibration saw no values: the layer did not run, or the data is empty"
            )
        return Statistics(
            count=self._count,
            zeros=self._zeros,
            low=self._low,
            high=self._high,
            bin_width=math.ldexp(1.0, self._exponent),
            first_bin=self._first,
            counts=tuple(self._counts.tolist()),
        )

    def _grow(self) -> None:
        """Widen the bins and the span until the histogram covers [low, high]."""
        import torch

        exponent = _bin_exponent(self._low, self._high, self._bins)
        first, last = _bin(self._low, exponent), _bin(self._high, exponent)
        counts = torch.zeros(last - first + 1, dtype=torch.int64)
        if self._counts is not None:
            old = torch.arange(self._counts.numel()) + self._first
            merged = torch.div(old, 1 << min(exponent - self._exponent, 62), rounding_mode="floor")
            counts.index_add_(0, merged - first, self._counts)
        self._exponent, self._first, self._counts = exponent, first, counts


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _bin_exponent(low: float, high: float, bins: int) -> int:
    """Least exponent whose bins cover [low, high]; grows with the range and with nothing else."""
    reach = max(abs(low), abs(high))
    if reach == 0:
        return -1022
    exponent = max(math.frexp(reach * FINEST_SHARE)[1], -1022)
    while _bin(high, exponent) - _bin(low, exponent) + 1 > bins:
        exponent += 1
    return exponent


def calibrated_range(
    spec: Format, statistics: Statistics, method: Method = "minmax", percentile: float = 99.99
) -> tuple[float, float]:
    """Return the range that a fixed quantizer of activations should cover.

    A format that names its own clipping (`int8_mse`, `int8_p99.9`) keeps to it. Formats whose
    scales come from the values themselves get the extremes.

    Args:
        spec: Format of the activations.
        statistics: What was seen of them.
        method: How to choose the range.
        percentile: For "percentile": share of the values, in percent, to keep on each side.

    Returns:
        Low and high end.

    Raises:
        UnknownNameError: There is no such method.
        InputError: The percentile is outside (50, 100].
    """
    if method not in get_args(Method):
        raise UnknownNameError("calibration method", method, get_args(Method))
    spec = resolve(spec, statistics, method, percentile)
    if isinstance(spec, Scaled) and spec.sharing.clip is not None:
        chosen = spec.sharing.clip.percentile
        method = "mse" if chosen is None else "percentile"
        percentile = chosen if chosen is not None else percentile
    if method == "minmax" or spec.dynamic or not spec.ranged or statistics.reach == 0:
        return statistics.low, statistics.high
    if method == "percentile":
        if not 50 < percentile <= 100:
            raise InputError(f"percentile {percentile:g} is not above 50 and at most 100")
        share = percentile / 100
        return statistics.quantile(1 - share), statistics.quantile(share)
    return _least_error_range(spec, statistics)


def _least_error_range(spec: Format, statistics: Statistics) -> tuple[float, float]:
    low, high = statistics.low, statistics.high
    if spec.bits > WIDEST_SEARCH:
        return low, high
    errors = [expected_error(spec, statistics, low * r, high * r) for r in RATIOS]
    ratio = RATIOS[errors.index(min(errors))]
    return low * ratio, high * ratio


def expected_error(spec: Format, statistics: Statistics, low: float, high: float) -> float:
    """Return the mean squared error of a fixed range on what was seen.

    Args:
        spec: A format with a fixed range, not one whose scales come from blocks.
        statistics: What was seen; but for zeros, values count as spread evenly in their bin.
        low: Low end of the range.
        high: High end of the range.

    Returns:
        Mean of (rounded - value)^2, float64.

    Raises:
        InputError: The format's scales come from blocks of values.
    """
    import torch

    if spec.dynamic:
        raise InputError(f"{spec.name} scales blocks of values; a histogram has no blocks")
    counts = torch.tensor(statistics.counts, dtype=torch.float64)
    if statistics.zeros:
        counts[-statistics.first_bin] -= statistics.zeros
    filled = counts.nonzero().squeeze(1)
    inner = (torch.arange(POINTS_PER_BIN, dtype=torch.float64) + 0.5) / POINTS_PER_BIN
    points = (filled.double().unsqueeze(1) + statistics.first_bin + inner) * statistics.bin_width
    points.clamp_(statistics.low, statistics.high)
    quantize = spec.quantizer(low, high)
    weights = counts[filled].unsqueeze(1) / POINTS_PER_BIN
    total = ((quantize(points) - points).square() * weights).sum()
    at_zero = quantize(points.new_zeros(1)).square().sum() * statistics.zeros
    return float((total + at_zero) / statistics.count)


def resolve(
    spec: Format, statistics: Statistics, method: Method = "minmax", percentile: float = 99.99
) -> Format:
    """Return the format whose grid is settled: an automatic one becomes its best candidate.

    Args:
        spec: Any format; most are settled already and come back as they are.
        statistics: What was seen of the values.
        method: How each candidate's range is chosen.
        percentile: For "percentile".

    Returns:
        The candidate of least mean squared error at its own range; ties go to the fewest
        exponent bits.

    Raises:
        InputError: An automatic format with groups, for which no single grid can be fixed.
    """
    if not isinstance(spec, AutoMinifloat):
        return spec
    if spec.dynamic:
        raise InputError(f"{spec.name} as an activation: choose exponent bits per tensor, no _g")
    candidates = [
        Minifloat(name=f"e{grid.exponent}m{grid.mantissa}", grid=grid, sharing=spec.sharing)
        for grid in spec.grids
    ]
    errors = [
        expected_error(c, statistics, *calibrated_range(c, statistics, method, percentile))
        for c in candidates
    ]
    return candidates[errors.index(min(errors))]


def calibrated_quantizer(
    spec: Format,
    statistics: Statistics,
    method: Method = "minmax",
    percentile: float = 99.99,
    block_axis: int = -1,
) -> Callable[[Tensor], Tensor]:
    """Return the function that rounds activations, its range chosen from what was seen.

    Args:
        spec: Format of the activations.
        statistics: What was seen of them.
        method: How to choose the range.
        percentile: For "percentile".
        block_axis: Axis along which block formats form blocks.

    Returns:
        See `Format.quantizer`.
    """
    settled = resolve(spec, statistics, method, percentile)
    low, high = calibrated_range(settled, statistics, method, percentile)
    return settled.quantizer(low, high, block_axis)
