"""Allocations whose choices interact in pairs, with a proven bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpsearch_solvers.local_search_moves import search
from mpsearch_solvers.local_search_start import solve_linear
from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Bools, Ints
from mpsearch_solvers.quadratic_bound import Part
from mpsearch_solvers.quadratic_branch import Branching
from mpsearch_solvers.quadratic_core import Core, Root, solve_root
from mpsearch_solvers.quadratic_diffusion import Diffusion, diffuse
from mpsearch_solvers.quadratic_form import QuadraticForm, compile_form

# Places (open options) up to which the semidefinite bound is affordable, and up to which branching
# has a chance of ending.
_DENSE = 1200
_BRANCH = 300
_EXACT = 1e-12
_SHARE = 0.25
_LARGE_SHARE = 0.8


@dataclass(frozen=True)
class Quadratic:
    """Local search, a convex bound, and branch and bound where the size allows a proof.

    Attributes:
        nodes: Most nodes of the branch and bound; the answer is then feasible with its bound.
        rounds: Shakes without improvement after which the local search ends.
    """

    nodes: int = 100_000
    rounds: int = 60

    @property
    def name(self) -> str:
        """The method's name."""
        return "quadratic"

    def refusal(self, model: Model) -> str | None:
        """Return why the model does not suit, or None."""
        if model.peak is not None:
            return "a peak is minimised; use ilp or brute_force"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Search, bound, branch; `exhausted` only when the search tree is closed."""
        begun = solve_linear(model, run)
        if begun.indices is None:
            return replace(begun, bound=None, multipliers=None)
        form = compile_form(model)
        is_large = int(form.allowed.sum()) > _DENSE
        part = _LARGE_SHARE if is_large else _SHARE
        allowance = None if run.remaining is None else run.seconds + part * run.remaining
        searching = replace(run, time_limit=allowance, report=None)
        indices = search(model, form, begun.indices, searching, self.rounds)
        incumbent = _Incumbent(model, form, indices, run.gap)
        diffusion = diffuse(form, run)
        bound = diffusion.value
        run.tell(self.name, form.restore(bound), model.value(indices), "local search")
        if bound >= incumbent.cutoff:
            return incumbent.outcome(bound, done=True)
        if is_large:
            note = f"over {_DENSE} options: local search with a relaxation bound"
            return incumbent.outcome(bound, done=False, note=note)
        if run.is_over:
            return incumbent.outcome(bound, done=False, note="stopped by the time limit")
        return self._prove(incumbent, diffusion, run)

    def _prove(self, incumbent: _Incumbent, diffusion: Diffusion, run: Run) -> Outcome:
        form = incumbent.form
        remaining = form.allowed & (diffusion.value + diffusion.reduced < incumbent.cutoff)
        if not remaining.any(axis=1).all():
            return incumbent.outcome(incumbent.cutoff, done=True)
        core = _whole(form, remaining)
        if not len(core.groups):
            return self._close(incumbent, core)
        root = solve_root(core, incumbent.cutoff, run)
        bound = max(diffusion.value, root.value)
        restore = incumbent.form.restore
        run.tell(self.name, restore(bound), restore(incumbent.value), "convex bound")
        if bound >= incumbent.cutoff:
            return incumbent.outcome(bound, done=True)
        if not len(root.core.groups):
            return self._close(incumbent, root.core)
        self._round(incumbent, root, run)
        places = int(root.core.part.allowed.sum())
        if places > _BRANCH:
            note = f"{places} options stay open, over {_BRANCH}: local search with a convex bound"
            return incumbent.outcome(bound, done=False, note=note)
        branching = Branching(root, incumbent.accept, incumbent.cutoff, run, self.nodes)
        done = branching.explore(
            lambda lower: run.tell(
                self.name, restore(lower), restore(incumbent.value), "branch and bound"
            )
        )
        note = "" if done else f"stopped after {branching.visited} nodes; give more nodes or time"
        return incumbent.outcome(max(bound, branching.lower), done=done, note=note)

    def _round(self, incumbent: _Incumbent, root: Root, run: Run) -> None:
        """Descend from the relaxed solution's nearest allocation, if that keeps the limits."""
        choice = root.core.choice.copy()
        choice[root.core.groups] = root.bound.point.argmax(axis=1)
        if incumbent.model.is_feasible(choice):
            terms = replace(run, report=None)
            found = search(incumbent.model, incumbent.form, choice, terms, self.rounds // 4)
            incumbent.accept(found)

    def _close(self, incumbent: _Incumbent, core: Core) -> Outcome:
        """Every group is settled: one allocation is left that could be better."""
        incumbent.accept(core.choice)
        return incumbent.outcome(incumbent.cutoff, done=True)


class _Incumbent:
    """The best allocation so far, and the objective that another must beat to matter."""

    def __init__(self, model: Model, form: QuadraticForm, indices: Ints, gap: float) -> None:
        self.model = model
        self.form = form
        self.gap = gap
        self.indices = indices
        self.value = form.value(indices)

    @property
    def cutoff(self) -> float:
        """Scaled objective from which on a bound closes the gap asked for."""
        exact = self.value - _EXACT * max(1.0, abs(self.value))
        value = self.form.restore(self.value)
        # A hair inside the gap asked for, so that rounding cannot leave it just outside.
        share = self.gap * (1.0 - 1e-6)
        target = value * (1.0 - share) if value > 0.0 else value / (1.0 - share)
        return min(exact, self.form.convert(target))

    def accept(self, indices: Ints) -> float | None:
        """Take a better allocation that keeps the limits; return the new cutoff."""
        value = self.form.value(indices)
        if not self.model.is_feasible(indices):
            return None
        if value < self.value:
            self.indices, self.value = indices, value
        return self.cutoff

    def outcome(self, lower: float, *, done: bool, note: str = "") -> Outcome:
        """Return the outcome for a scaled bound, which never exceeds the value."""
        value = self.model.value(self.indices)
        exact = self.value - _EXACT * max(1.0, abs(self.value))
        bound = value if lower >= exact else min(value, self.form.restore(lower))
        return Outcome(self.indices, bound, exhausted=done, note=note)


def _whole(form: QuadraticForm, allowed: Bools) -> Core:
    groups = np.arange(form.shape[0])
    part = Part(form.linear, form.allowed, form.cost, form.room)
    core = Core(groups, np.zeros(len(groups), dtype=np.intp), 0.0, part, form.matrix())
    return core.settle(allowed)
