"""Evolution over allocations, for objectives that only a measurement can give."""

from __future__ import annotations

import math
import os
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mpsearch_solvers.errors import MethodError
from mpsearch_solvers.evolutionary_storage import open_storage
from mpsearch_solvers.evolutionary_study import (
    AllocationStudy,
    fingerprint_of,
    load_optuna,
)
from mpsearch_solvers.local_search_measure import Key, Measured, Meter, Objective
from mpsearch_solvers.local_search_moves import Descent
from mpsearch_solvers.local_search_start import solve_linear
from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model, compile_problem
from mpsearch_solvers.problem import Ints, Limit
from mpsearch_solvers.quadratic_form import compile_form

# Over-budget and repeated proposals cost nothing; this many per trial asked for and the sampler
# has nothing new to say.
_PROPOSALS = 20
_SPARE = 200


@dataclass(frozen=True, eq=False)
class Evolution:
    """What an evolutionary run found.

    Attributes:
        best: The allocation with the least first objective, or None if none was measured.
        front: The allocations that no other beats in every objective, least first value first.
        measured: Every allocation tried, in the order of the record, failures included.
        resumed: How many of them earlier runs had finished.
        stopped: Why it ended, in a few words.
    """

    best: Measured | None
    front: tuple[Measured, ...]
    measured: tuple[Measured, ...]
    resumed: int
    stopped: str


@dataclass(frozen=True)
class EvolutionarySearch:
    """Optuna's NSGA-II, NSGA-III or TPE over one option per group.

    Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002); Deb and
    Jain, NSGA-III (2014); Bergstra et al., "Algorithms for hyper-parameter optimization" (2011).
    Allocations over a budget are never measured, and none is measured twice.

    Attributes:
        objective: Called with the column of every group of the problem, an int array of shape
            (groups,); returns what to minimise. None takes the problem's own numbers.
        trials: Allocations to measure, those that the study already holds included.
        storage: Path of a journal file, a database URL (`sqlite:///study.db`), an Optuna storage,
            or None to keep nothing.
        study: Name of the study in the storage.
        sampler: `nsga2`, `nsga3`, `tpe`, or an Optuna sampler.
        population: Size of a generation (NSGA), or of the random start (TPE).
        batch: Allocations drawn before the sampler learns from them. Results depend on this, not
            on the executor.
        executor: Evaluates a batch in parallel; it stays open. Process pools need an objective
            that can be pickled.
        objectives: How many numbers the objective returns.
        seeds: Exact answers to the predicted problem to begin with, for the limits and for
            tighter ones.
        catch: Exceptions of the objective that fail one trial instead of ending the run.
    """

    objective: Objective | None = None
    trials: int = 200
    storage: object = None
    study: str = "mpsearch"
    sampler: object = "nsga2"
    population: int = 20
    batch: int = 8
    executor: Executor | None = field(default=None, compare=False)
    objectives: int = 1
    seeds: int = 4
    catch: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            MethodError: If one is out of range.
        """
        least = {"trials": 1, "population": 2, "batch": 1, "objectives": 1, "seeds": 0}
        for name, floor in least.items():
            if getattr(self, name) < floor:
                raise MethodError(f"{name} is {getattr(self, name)}; give at least {floor}")
        if self.objectives > 1 and self.objective is None:
            raise MethodError("several objectives need a callable that returns them")

    @property
    def name(self) -> str:
        """The method's name."""
        return "evolutionary"

    def refusal(self, model: Model) -> str | None:
        """Return why the model does not suit, or None."""
        if model.problem.goal.is_worst_loss:
            return "the worst loss is found exactly by ilp; minimise a measured objective instead"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Evolve; the answer is the best allocation measured, and no bound is proven."""
        load_optuna()
        begun = solve_linear(model, run)
        if begun.indices is None and begun.exhausted:
            return replace(begun, bound=None, multipliers=None)
        found = _evolve(self, model, run, begun.indices)
        indices = None if found.best is None else found.best.indices
        if not found.measured:
            # The time was up before anything was measured: the exact start is the best known.
            indices = begun.indices
        return Outcome(indices, None, exhausted=False, solver=_solver(), note=_note(self, found))


def evolve(model: Model, search: EvolutionarySearch, run: Run | None = None) -> Evolution:
    """Run an evolutionary search and return everything it measured.

    Args:
        model: The compiled problem, from `compile_problem`.
        search: The settings.
        run: Time limit, seed and listener; default none.

    Returns:
        The best allocation, the front and every measurement.
    """
    load_optuna()
    run = Run() if run is None else run
    return _evolve(search, model, run, solve_linear(model, run).indices)


def _evolve(search: EvolutionarySearch, model: Model, run: Run, start: Ints | None) -> Evolution:
    digest = fingerprint_of(model, with_loss=search.objective is None)
    with open_storage(search.storage, search.study) as storage:
        study = AllocationStudy(
            model,
            run,
            storage,
            search.study,
            search.sampler,
            search.population,
            search.objectives,
            digest,
        )
        _seed(search, model, run, start, study)
        stopped = _Loop(search, model, run, study).finish()
    measured = tuple(study.tried.values())
    front = _front([one for one in measured if not one.error])
    best = front[0] if front else None
    return Evolution(best, tuple(front), measured, study.resumed, stopped)


def _seed(
    search: EvolutionarySearch,
    model: Model,
    run: Run,
    start: Ints | None,
    study: AllocationStudy,
) -> None:
    """Queue exact answers, and a first generation of their feasible neighbours."""
    if start is None:
        return
    seeds = [start] if search.seeds else []
    for step in range(1, search.seeds):
        tighter = _tightened(model, 1.0 - step / search.seeds)
        found = solve_linear(tighter, replace(run, start=None, report=None))
        if found.indices is not None and model.is_feasible(found.indices):
            seeds.append(found.indices)
    shaker = _Shaker(model, run.seed)
    fresh = {tuple(indices.tolist()): indices for indices in seeds}
    for position in range(search.population - len(seeds)):
        indices = shaker.shake(seeds[position % len(seeds)] if seeds else start)
        fresh.setdefault(tuple(indices.tolist()), indices)
    for key, indices in fresh.items():
        if key not in study.tried:
            study.propose(indices)


class _Shaker:
    """Random neighbours within the limits."""

    def __init__(self, model: Model, seed: int) -> None:
        self.model = model
        self.form = compile_form(model)
        self.rng = np.random.default_rng(seed)

    def shake(self, indices: Ints) -> Ints:
        """Return a feasible choice a few changes away from a feasible one."""
        walk = Descent(self.model, self.form, indices)
        walk.shake(self.rng, 1 + int(self.rng.integers(1 + math.isqrt(len(indices)))))
        return walk.indices


def _tightened(model: Model, share: float) -> Model:
    """Return the model with only a share of the room that each `max` leaves above the least."""
    problem = model.problem
    limits = dict(problem.limits)
    for row in model.rows:
        limit = limits.get(row.resource)
        if limit is None or limit.max is None or row.step is not None or row.side != "max":
            continue
        least = math.fsum(np.where(model.allowed, row.cost, np.inf).min(axis=1).tolist())
        floor = max(least + share * (row.limit - least), limit.min or -math.inf)
        limits[row.resource] = Limit(max=floor, min=limit.min)
    return compile_problem(replace(problem, limits=limits))


class _Loop:
    """Draws batches, measures them, tells the study, until the trials or the time are spent."""

    def __init__(
        self, search: EvolutionarySearch, model: Model, run: Run, study: AllocationStudy
    ) -> None:
        self.search = search
        self.model = model
        self.run = run
        self.study = study
        self.proposals = 0
        self.shaker = _Shaker(model, run.seed + 1)
        if search.objective is None:
            self.meter = Meter(model.value)
        else:
            self.meter = Meter(search.objective, search.objectives, search.executor, search.catch)

    def finish(self) -> str:
        """Go on until something ends the run; return what."""
        trials = self.search.trials
        while len(self.study.tried) < trials:
            if self.run.is_over:
                return "the time limit"
            if self.proposals >= _PROPOSALS * trials + _SPARE:
                return f"{self.proposals} proposals with nothing new within the limits"
            batch = self._draw(min(self.search.batch, trials - len(self.study.tried)))
            if not batch:
                self._stir()
            elif not self._measure(batch):
                return "the time limit"
            self._tell()
        return "all trials done"

    def _stir(self) -> None:
        """Queue neighbours of good allocations: a population that has converged only repeats."""
        valid = sorted((one for one in self.study.tried.values() if not one.error), key=_rank)
        for one in valid[: self.search.batch]:
            self.study.propose(self.shaker.shake(one.indices))

    def _draw(self, size: int) -> dict[Key, list[Any]]:
        """Return up to `size` new allocations with the trials that proposed them."""
        fresh: dict[Key, list[Any]] = {}
        for _ in range(size):
            trial, indices = self.study.ask()
            self.proposals += 1
            key = tuple(indices.tolist())
            if not self.model.is_feasible(indices):
                self.study.tell_over_budget(trial, [0.0] * self.search.objectives)
            elif key in self.study.tried:
                self.study.tell_known(trial, self.study.tried[key])
            else:
                fresh.setdefault(key, []).append(trial)
        return fresh

    def _measure(self, batch: dict[Key, list[Any]]) -> bool:
        """Measure a batch; returns False when the time ended first."""
        waiting = dict(batch)

        def settle(measured: Measured) -> None:
            first, *repeats = waiting.pop(tuple(measured.indices.tolist()))
            self.study.tell(first, measured)
            for repeat in repeats:
                self.study.tell_known(repeat, measured)

        predicted = self.search.objective is None
        given = {key: np.array(key, dtype=np.intp) for key in batch}
        if not predicted:
            given = {key: self.model.expand(indices) for key, indices in given.items()}
        try:
            return self.meter.measure(given, self.run, settle)
        finally:
            for trials in waiting.values():
                for trial in trials:
                    self.study.drop(trial)

    def _tell(self) -> None:
        valid = [one for one in self.study.tried.values() if not one.error]
        if not valid:
            return
        best = min(valid, key=_rank)
        stage = f"{len(self.study.tried)} of {self.search.trials} trials, best {best.values[0]:.6g}"
        self.run.tell(self.search.name, None, self.model.value(best.indices), stage)


def _rank(one: Measured) -> tuple[tuple[float, ...], list[int]]:
    return one.values, one.indices.tolist()


def _front(measured: list[Measured]) -> list[Measured]:
    """Return the allocations that no other beats everywhere, least first value first."""
    ordered = sorted(measured, key=_rank)
    front: list[Measured] = []
    for one in ordered:
        mine = np.array(one.values)
        if not any((np.array(other.values) <= mine).all() for other in front):
            front.append(one)
    return front


def _solver() -> str:
    return f"Optuna {load_optuna().__version__}"


def _note(search: EvolutionarySearch, found: Evolution) -> str:
    failed = [one for one in found.measured if one.error]
    parts = [f"{len(found.measured)} allocations tried, {found.resumed} of them by earlier runs"]
    if found.best is not None and search.objective is not None:
        values = ", ".join(f"{value:.9g}" for value in found.best.values)
        parts.append(f"least measured objective {values}")
    if failed:
        parts.append(f"{len(failed)} failed, the last with {failed[-1].error}")
    if search.storage is not None and isinstance(search.storage, str | os.PathLike):
        parts.append(f"study {search.study!r} kept in {os.fspath(search.storage)}")
    parts.append(f"ended by {found.stopped}")
    return "; ".join(parts)
