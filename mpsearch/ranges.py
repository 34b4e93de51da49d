"""Input ranges: calibrated for the formats that will need them, saved, and read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from mpsearch.engine.activations import MINMAX, KnownRange, needs_histogram, settled
from mpsearch.engine.calibration import calibrate, observe
from mpsearch.engine.quantizer import Ranges
from mpsearch.formats import Format, Option, get
from mpsearch.models.dataset import Batch
from mpsearch.schemas import Allocation, InputRange, Profile

__all__ = ["activation_formats", "extremes", "known_ranges", "resolved", "saved_ranges", "settles"]


def activation_formats(options: Iterable[Option]) -> list[Format]:
    """Name the formats that inputs are rounded to.

    Args:
        options: What layers may be given.

    Returns:
        Each format once, `float` left out.
    """
    return list(dict.fromkeys(o.activation for o in options if not o.activation.is_float))


def known_ranges(
    model: nn.Module,
    layers: Sequence[str],
    batches: Iterable[Batch],
    formats: Sequence[Format],
) -> Ranges:
    """Calibrate every layer's input for these formats.

    Args:
        model: The float model.
        layers: Names of the layers to watch.
        batches: Calibration inputs.
        formats: Formats of the inputs. Those that clip, or choose their grid, are settled from a
            histogram; without any such format only the extremes are watched.

    Returns:
        Layer -> its range.
    """
    choosing = [each for each in formats if needs_histogram(each)]
    if not choosing:
        return calibrate(model, layers, batches)
    return {
        layer: KnownRange(
            seen.low, seen.high, {each: settled(each, seen, MINMAX) for each in choosing}
        )
        for layer, seen in observe(model, layers, batches).items()
    }


def extremes(ranges: Ranges) -> dict[str, tuple[float, float]]:
    """Give the ends of every range.

    Args:
        ranges: Layer -> its range.

    Returns:
        Layer -> (smallest, largest) input value.
    """
    return {
        layer: found if isinstance(found, tuple) else (found.low, found.high)
        for layer, found in ranges.items()
    }


def resolved(ranges: Ranges) -> dict[str, dict[str, InputRange]]:
    """Write down what was settled for formats that clip or choose their grid.

    Args:
        ranges: Layer -> its range.

    Returns:
        Layer -> format -> the grid and range that stand for it.
    """
    return {
        layer: {
            asked.name: InputRange(format=found.name, low=low, high=high)
            for asked, (found, low, high) in known.settled.items()
        }
        for layer, known in ranges.items()
        if isinstance(known, KnownRange)
    }


def saved_ranges(answer: Profile | Allocation) -> Ranges:
    """Read back the ranges that a document carries.

    Args:
        answer: A profile or an allocation.

    Returns:
        Layer -> its range; empty where the document carries none.
    """
    chosen = answer.resolved_ranges
    return {
        layer: KnownRange(*ends, _read(chosen[layer])) if layer in chosen else ends
        for layer, ends in answer.activation_ranges.items()
    }


def settles(ranges: Ranges, formats: Iterable[Format]) -> bool:
    """Tell whether ranges that were saved say enough for these formats.

    Args:
        ranges: Layer -> its range.
        formats: Formats of the inputs.

    Returns:
        False where there are no ranges, or a format clips or chooses its grid and some layer's
        range does not say how.
    """
    choosing = [each for each in formats if needs_histogram(each)]
    return bool(ranges) and all(
        isinstance(found, KnownRange) and each in found.settled
        for found in ranges.values()
        for each in choosing
    )


def _read(records: Mapping[str, InputRange]) -> dict[Format, tuple[Format, float, float]]:
    return {
        get(asked): (get(found.format), found.low, found.high) for asked, found in records.items()
    }
