"""The exact problem of neighbours whose options differ: one more group for every conversion.

A conversion costs c·a·b for indicators a and b of two groups' options. A group of its own, with
the options `free` (no cost) and `paid` (cost c), and the row a + b + free <= 2 say the same: where
both hold it must be paid. What was quadratic is then a 0-1 program (the standard linearisation of
a product; Fortet, "L'algèbre de Boole et ses applications en recherche opérationnelle", Cahiers du
Centre d'Études de Recherche Opérationnelle, 1959). For two options per group these rows are those
of a cut in a graph, whose relaxation is tight, so that branch and cut needs seconds where
decomposition, which sees a row per edge, needs minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.schemas import Conversion, Costs
from mpsearch_solvers import Method, Model, Outcome, PeakRows, Problem, Run, Solution, solve
from mpsearch_solvers.registry import load_method

__all__ = ["PairedProblem", "paired_problem"]

METHOD = "ilp"
EXPLAIN_SECONDS = 10.0
"""For each budget, to find the least that it could be within the others."""


@dataclass(frozen=True)
class PairedProblem:
    """A problem that counts conversions, and how to read its answers.

    Attributes:
        problem: The problem, its last groups being conversions.
        costs: The prices that it is made from.
        rows: Name of the rows that tie conversions to choices.
    """

    problem: Problem
    costs: Costs
    rows: str

    def solve(
        self,
        *,
        gap: float = 1e-6,
        seconds: float | None = None,
        seed: int = 0,
        progress: Callable[[Any], None] | None = None,
    ) -> Solution:
        """Solve by branch and cut.

        Args:
            gap: Relative gap to prove.
            seconds: Time limit.
            seed: Seed of the solver.
            progress: Called with the solver's reports.

        Returns:
            The solution in the groups of the prices; `infeasible` only where that is proven, with
            the least use of each budget within the others.
        """
        method = _Terse()
        found = solve(
            self.problem, method, gap=gap, time_limit=seconds, seed=seed, progress=progress
        )
        if found.indices is not None:
            return self._read(found)
        if not method.proved_infeasible:
            return found
        others = {name: self.least(name, seed=seed) for name in self._limited}
        return dataclasses.replace(
            found, status="infeasible", bound=None, minimum_given_others=others
        )

    def least(self, resource: str, *, seed: int = 0) -> float | None:
        """Find the least use of one resource while the limits of the others hold.

        Args:
            resource: The resource.
            seed: Seed of the solver.

        Returns:
            The use; None where the others cannot be kept, or no answer came in time.
        """
        limits = {k: v for k, v in self.problem.limits.items() if k != resource}
        goal = dataclasses.replace(self.problem.goal, minimize=resource)
        posed = dataclasses.replace(self.problem, limits=limits, goal=goal)
        found = solve(posed, _Terse(), time_limit=EXPLAIN_SECONDS, seed=seed)
        if found.indices is None:
            return None
        return self.costs.usage(resource, found.indices[: len(self.costs.groups)])

    def within(self, limits: Mapping[str, float]) -> PairedProblem:
        """Set other limits.

        Args:
            limits: Resource -> largest use; those not named stay.

        Returns:
            The same problem with those limits.
        """
        return dataclasses.replace(self, problem=self.problem.with_limits(**limits))

    @property
    def _limited(self) -> list[str]:
        return [name for name in self.problem.limits if name != self.rows]

    def _read(self, found: Solution) -> Solution:
        """Leave out of a solution what stands for conversions."""
        assert found.indices is not None
        indices = found.indices[: len(self.costs.groups)]
        return dataclasses.replace(
            found,
            indices=indices,
            choice={group: found.choice[group] for group in self.costs.groups},
            usage={name: self.costs.usage(name, indices) for name in self._priced},
            shadow_prices={k: v for k, v in found.shadow_prices.items() if k != self.rows},
            binding_steps={k: v for k, v in found.binding_steps.items() if k != self.rows},
        )

    @property
    def _priced(self) -> list[str]:
        return [name for name in self.problem.resources if name != self.rows]


class _Terse:
    """Branch and cut that reports what it proves, without the analysis of why nothing is feasible.

    That analysis minimises each resource by decomposition, which takes minutes with a row for
    every conversion.
    """

    name = METHOD

    def __init__(self) -> None:
        self._method: Method = load_method(METHOD)
        self.proved_infeasible = False

    def refusal(self, model: Model) -> str | None:
        """Say why the model cannot be solved, or None."""
        return self._method.refusal(model)

    def solve(self, model: Model, run: Run) -> Outcome:
        """Solve; keep to itself that nothing is feasible."""
        found = self._method.solve(model, run)
        self.proved_infeasible = found.indices is None and found.exhausted
        return dataclasses.replace(found, exhausted=False) if self.proved_infeasible else found


def paired_problem(problem: Problem, costs: Costs, limited: Collection[str]) -> PairedProblem:
    """Add conversions to a problem of groups alone.

    Args:
        problem: The problem without conversions; groups and options as in the prices.
        costs: Prices with conversions.
        limited: Resources whose conversions are counted; the problem has their costs.

    Returns:
        The problem with a group for every conversion that costs something.
    """
    pairs = _merged(costs, limited)
    own, extra = len(costs.groups), len(pairs)
    width = problem.loss.shape[1]

    def extended(table: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([table, np.zeros((extra, width))])

    allowed = np.zeros((own + extra, width), dtype=bool)
    allowed[:own], allowed[own:, :2] = problem.allowed, True
    prices = {name: extended(table) for name, table in problem.costs.items()}
    ties = np.zeros((extra, own + extra, width))
    for number, (pair, spent) in enumerate(pairs):
        for resource, cost in spent.items():
            prices[resource][own + number, 1] = cost
        for group, chosen in zip(pair.groups, (pair.first, pair.second), strict=True):
            ties[number, costs.groups.index(group)] += [o in chosen for o in costs.options]
        ties[number, own + number, 0] = 1.0
    rows = "conversions"
    while rows in problem.resources:
        rows += "_"
    names = [f"{number}: {' -> '.join(p.groups)}" for number, (p, _) in enumerate(pairs)]
    idle = np.zeros((1, own + extra, width))
    padded = {
        name: PeakRows(
            peak.steps,
            np.concatenate([peak.cost, np.zeros((len(peak.steps), extra, width))], axis=1),
            peak.base,
        )
        for name, peak in problem.peaks.items()
    }
    tied = PeakRows(tuple(names) or ("none",), ties if extra else idle, np.zeros(max(extra, 1)))
    whole = Problem.from_arrays(
        extended(np.where(problem.allowed, problem.loss, 0.0)),
        costs=prices,
        limits={**problem.limits, rows: 2.0},
        names=[*costs.groups, *names],
        options=costs.options,
        allowed=allowed,
        rows=padded | {rows: tied},
    )
    return PairedProblem(whole, costs, rows)


def _merged(costs: Costs, limited: Collection[str]) -> list[tuple[Conversion, dict[str, float]]]:
    """Put the conversions of several resources together where the same choices cause them."""
    found: dict[tuple[Any, ...], tuple[Conversion, dict[str, float]]] = {}
    for resource in limited:
        for pair in costs.conversions.get(resource, ()):
            times = 0
            key = (pair.groups, tuple(pair.first), tuple(pair.second))
            # Costs of one resource stay apart, so that its exact sum is that of the prices.
            while resource in found.get((*key, times), (pair, {}))[1]:
                times += 1
            if pair.cost > 0:
                found.setdefault((*key, times), (pair, {}))[1][resource] = pair.cost
    return list(found.values())
