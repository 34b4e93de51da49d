"""Random problems for the tests, with the knobs that matter."""

from __future__ import annotations

import numpy as np

from mpsearch_solvers import Problem


def random_problem(
    rng: np.random.Generator,
    groups: int,
    options: int,
    budgets: int,
    *,
    tightness: float | None = None,
    shift: float = 0.0,
    ragged: bool = False,
) -> Problem:
    """Lognormal losses and costs, limits part of the way from cheapest to dearest."""
    loss = rng.lognormal(size=(groups, options)) - shift
    costs = {f"r{k}": rng.lognormal(size=(groups, options)) for k in range(budgets)}
    allowed = np.ones((groups, options), dtype=bool)
    if ragged:
        allowed = rng.random((groups, options)) < 0.7
        allowed[np.arange(groups), rng.integers(options, size=groups)] = True
    limits = {}
    for name, cost in costs.items():
        least = np.where(allowed, cost, np.inf).min(axis=1).sum()
        most = np.where(allowed, cost, -np.inf).max(axis=1).sum()
        part = rng.uniform(0.1, 0.8) if tightness is None else tightness
        limits[name] = float(least + part * (most - least))
    return Problem.from_arrays(loss, costs, limits, allowed=allowed)


def assert_same_answer(first, second, rel: float = 1e-9) -> None:
    """Both infeasible, or equal objectives."""
    assert first.status == second.status
    if second.objective is not None:
        scale = max(1e-300, abs(second.objective))
        assert abs(first.objective - second.objective) <= rel * scale
