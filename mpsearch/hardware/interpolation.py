"""Costs of shapes that were not measured, from those that were, in log space.

Costs of one kernel follow power laws of the shape over wide ranges, so that logarithms are close to
linear. Along a line of measured shapes (one size varies, or several in proportion) the logarithm of
the cost is interpolated piecewise linearly. Elsewhere a power law is fitted to all measured shapes,
and what it leaves over is spread by inverse squared distance (Shepard 1968, "A two-dimensional
interpolation function for irregularly-spaced data"); both reproduce every measured cost exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError

__all__ = ["Estimate", "interpolate"]

Origin = Literal["measured", "modelled", "given", "roofline", "interpolated", "extrapolated"]
TOLERANCE = 1e-9
LEAST_EXPONENT, GREATEST_EXPONENT = np.log(np.finfo(np.float64).tiny), np.log(np.finfo(float).max)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A cost for a shape.

    Attributes:
        value: The cost, in the unit of the table.
        origin: `measured` where this very shape was (or `modelled` or `given`, as the table says
            of itself), `interpolated` within the measured range of every size, `extrapolated`
            beyond it or off the line that all measured shapes lie on; `roofline` from data sheets.
    """

    value: float
    origin: Origin


def interpolate(sizes: Floats, costs: Floats, wanted: Floats) -> Estimate:
    """Estimate the cost of a shape.

    Args:
        sizes: Measured shapes, float64, shapes x keys, all positive.
        costs: Their costs, positive.
        wanted: The shape to estimate, one value for every key.

    Returns:
        The estimate. With one measured shape the cost grows in proportion to the product of
        all sizes, which is flagged as extrapolated like everything outside the range.

    Raises:
        InputError: The law through the measurements leaves the range of float64 at this shape.
    """
    points, at = np.log(sizes), np.log(wanted)
    same = np.flatnonzero(np.abs(points - at).max(axis=1, initial=0.0) < TOLERANCE)
    if same.size:
        return Estimate(float(np.median(costs[same])), "measured")
    inside = bool(
        ((points.min(axis=0) - TOLERANCE <= at) & (at <= points.max(axis=0) + TOLERANCE)).all()
    )
    centre = points.mean(axis=0)
    directions = _directions(points - centre)
    offset = at - centre
    off_span = float(np.linalg.norm(offset - directions.T @ (directions @ offset)))
    inside = inside and off_span < 1e-6
    logarithms = np.log(costs)
    if len(directions) == 1 and off_span < 1e-6:
        value = _along(
            directions[0] @ (points - centre).T, logarithms, float(directions[0] @ offset)
        )
    else:
        value = _scattered(points - centre, logarithms, offset)
    if not LEAST_EXPONENT < value < GREATEST_EXPONENT:
        raise InputError(_too_far(sizes, wanted))
    return Estimate(float(np.exp(value)), "interpolated" if inside else "extrapolated")


def _too_far(sizes: Floats, wanted: Floats) -> str:
    measured = " x ".join(
        f"{low:g} to {high:g}"
        for low, high in zip(sizes.min(axis=0), sizes.max(axis=0), strict=True)
    )
    asked = " x ".join(f"{size:g}" for size in wanted)
    return (
        f"costs measured at sizes {measured} vary too steeply to tell that of the shape asked for "
        f"{asked}; measure a shape nearer to it"
    )


def _directions(centred: Floats) -> Floats:
    """Return an orthonormal basis of the directions in which measured shapes differ."""
    _, strengths, basis = np.linalg.svd(centred, full_matrices=False)
    kept: Floats = basis[strengths > 1e-8 * max(1.0, float(strengths.max(initial=0.0)))]
    return kept


def _along(positions: Floats, values: Floats, at: float) -> float:
    order = np.argsort(positions)
    positions, values = positions[order], values[order]
    right = int(np.clip(np.searchsorted(positions, at), 1, len(positions) - 1))
    left = right - 1
    share = (at - positions[left]) / (positions[right] - positions[left])
    return float(values[left] + share * (values[right] - values[left]))


def _scattered(centred: Floats, values: Floats, offset: Floats) -> float:
    # Exponents start at 1 (proportional to the work) and are moved no further than the
    # measurements ask, so that few measurements still give a sensible law.
    mean = float(values.mean() - centred.sum(axis=1).mean())
    left = values - centred.sum(axis=1) - mean
    extra, *_ = np.linalg.lstsq(centred, left, rcond=1e-10)
    residual = left - centred @ extra
    weights = 1.0 / ((centred - offset) ** 2).sum(axis=1)
    spread = float(weights @ residual / weights.sum())
    return mean + float(offset.sum() + offset @ extra) + spread
