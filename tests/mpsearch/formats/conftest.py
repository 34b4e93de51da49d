"""Values that make rounding go wrong where it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest


def _hard_values(positives: Sequence[float], count: int = 1_000_000) -> np.ndarray:
    """A million float32 values: random ones, and every grid point, tie and neighbour of both."""
    grid = np.asarray([0.0, *positives], dtype=np.float64)
    ties = (grid[1:] + grid[:-1]) / 2
    top = grid[-1]
    with np.errstate(over="ignore"):
        points = np.concatenate(
            [grid, ties, [top + (top - grid[-2]) / 2, 2 * top, 1e30, 3.4e38, 1e-45, 1e-40, 2**-126]]
        ).astype(np.float32)
        points = np.concatenate(
            [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))]
        )
    points = points[np.isfinite(points)]
    rng = np.random.default_rng(0)
    rest = count - 2 * len(points)
    exponents = rng.uniform(np.log2(grid[1]) - 4, np.log2(top) + 2, rest)
    spread = np.exp2(exponents) * rng.choice([-1.0, 1.0], rest)
    spread = np.clip(spread, -3.4e38, 3.4e38)
    return np.concatenate([points, -points, spread.astype(np.float32)])


@pytest.fixture(scope="session")
def hard_values() -> Callable[..., np.ndarray]:
    return _hard_values
