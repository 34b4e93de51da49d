"""Local search from the exact answer to the predicted problem, on predicted or measured loss."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np

from mpsearch_solvers.errors import MethodError
from mpsearch_solvers.local_search_measure import Key, Measured, Meter, Objective
from mpsearch_solvers.local_search_moves import search
from mpsearch_solvers.local_search_start import solve_linear
from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Ints
from mpsearch_solvers.quadratic_form import compile_form

# Random moves drawn per candidate wanted, before the neighbourhood counts as used up.
_DRAWS = 30


@dataclass(frozen=True)
class LocalSearch:
    """Swap moves: one group up, another down, keep what improves; proves nothing.

    With a measured objective after CASA: every round measures a number of random feasible
    neighbours of the incumbent and moves to the best of them if it is better. Without one, an
    iterated local search on the problem's own numbers, interactions included.

    Attributes:
        objective: Called with the column of every group of the problem, an int array of shape
            (groups,); returns the loss to minimise. None takes the problem's own numbers.
        candidates: Neighbours measured per round.
        rounds: Most rounds with a measured objective; shakes without improvement otherwise.
        executor: Measures the candidates of a round in parallel; it stays open.
        catch: Exceptions of the objective that discard one candidate instead of ending the run.
    """

    objective: Objective | None = None
    candidates: int = 100
    rounds: int = 20
    executor: Executor | None = field(default=None, compare=False)
    catch: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            MethodError: If one is below 1.
        """
        for name in ("candidates", "rounds"):
            if getattr(self, name) < 1:
                raise MethodError(f"{name} is {getattr(self, name)}; give at least 1")

    @property
    def name(self) -> str:
        """The method's name."""
        return "local_search"

    def refusal(self, model: Model) -> str | None:
        """Return why the model does not suit, or None."""
        if self.objective is not None and model.problem.goal.is_worst_loss:
            return "a measured objective replaces the goal; minimise the loss"
        if self.objective is None and model.peak is not None:
            return "a peak is minimised; use ilp or brute_force"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Start from the exact answer and walk downhill."""
        begun = solve_linear(model, run)
        if begun.indices is None:
            return replace(begun, bound=None, multipliers=None)
        if self.objective is None:
            best = search(model, compile_form(model), begun.indices, run, self.rounds)
            run.tell(self.name, None, model.value(best), "local search")
            return Outcome(best, None, exhausted=False)
        climb = _Climb(self, model, run, begun.indices)
        return climb.finish(Meter(self.objective, 1, self.executor, self.catch))


class _Climb:
    """The walk over measured allocations."""

    def __init__(self, settings: LocalSearch, model: Model, run: Run, start: Ints) -> None:
        self.settings = settings
        self.model = model
        self.run = run
        self.rng = np.random.default_rng(run.seed)
        self.start = start
        self.tried: dict[Key, Measured] = {}
        self.best: Measured | None = None

    def finish(self, meter: Meter) -> Outcome:
        """Measure the start, then rounds of neighbours."""
        stopped = self._walk(meter)
        best = self.best
        failed = sum(bool(one.error) for one in self.tried.values())
        parts = [f"{len(self.tried)} allocations measured"]
        if best is not None:
            parts.append(f"least measured objective {best.values[0]:.9g}")
            first = self.tried.get(_key(self.start))
            if first is not None and first.values:
                parts.append(f"{first.values[0]:.9g} at the start")
        if failed:
            parts.append(f"{failed} failed")
        parts.append(f"ended by {stopped}")
        indices = self.start if best is None else best.indices
        return Outcome(indices, None, exhausted=False, note="; ".join(parts))

    def _walk(self, meter: Meter) -> str:
        if not self._measure([self.start], meter):
            return "the time limit"
        for number in range(self.settings.rounds):
            before = self.best
            around = self.start if before is None else before.indices
            neighbours = self._neighbours(around)
            if not neighbours:
                return "a neighbourhood with nothing left to measure"
            if not self._measure(neighbours, meter):
                return "the time limit"
            if self.best is not None:
                stage = f"round {number + 1}, best measured {self.best.values[0]:.6g}"
                value = self.model.value(self.best.indices)
                self.run.tell(self.settings.name, None, value, stage)
        return "all rounds done"

    def _measure(self, choices: list[Ints], meter: Meter) -> bool:
        batch = {_key(indices): self.model.expand(indices) for indices in choices}
        return meter.measure(batch, self.run, self._settle)

    def _settle(self, measured: Measured) -> None:
        self.tried[_key(measured.indices)] = measured
        if not measured.error and (self.best is None or measured.values < self.best.values):
            self.best = measured

    def _neighbours(self, around: Ints) -> list[Ints]:
        """Return new feasible neighbours: one group changed, or two in a swap."""
        found: dict[Key, Ints] = {}
        for _ in range(_DRAWS * self.settings.candidates):
            if len(found) >= self.settings.candidates:
                break
            indices = around.copy()
            for _ in range(int(self.rng.integers(1, 3))):
                group = int(self.rng.integers(len(indices)))
                indices[group] = self.rng.choice(np.flatnonzero(self.model.allowed[group]))
            key = _key(indices)
            if key in self.tried or key in found or not self.model.is_feasible(indices):
                continue
            found[key] = indices
        return list(found.values())


def _key(indices: Ints) -> Key:
    return tuple(indices.tolist())
