"""What a solution method is given, what it must give back, and how it tells of its progress.

A method is one class with a `name`, `refusal` and `solve`, and one line in `registry.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Floats, Ints


@dataclass(frozen=True)
class Progress:
    """Where a solve stands.

    Attributes:
        seconds: Time since the solve began.
        method: Name of the method at work.
        bound: Proven lower bound on the objective, or None.
        incumbent: Objective of the best feasible allocation so far, or None.
        stage: What is being done, in a few words.
    """

    seconds: float
    method: str
    bound: float | None
    incumbent: float | None
    stage: str = ""

    @property
    def gap(self) -> float | None:
        """Relative gap between incumbent and bound, or None while one is missing."""
        if self.bound is None or self.incumbent is None:
            return None
        return relative_gap(self.incumbent, self.bound)


def relative_gap(objective: float, bound: float) -> float:
    """Return `(objective - bound) / max(|objective|, |bound|)`; 0 when they are equal."""
    if objective <= bound:
        return 0.0
    return (objective - bound) / max(abs(objective), abs(bound))


@dataclass
class Run:
    """The terms of one solve: when to stop, where to start, whom to tell.

    Attributes:
        gap: Relative gap at which an answer counts as optimal; 0 asks for a full proof.
        time_limit: Seconds allowed, or None.
        seed: Seed of everything random.
        report: Called with the progress, or None.
        start: A choice of model columns to start from, or None.
        multipliers: Dual multipliers to start from, one per row of the model, or None.
        began: Clock at the start of the solve.
    """

    gap: float = 1e-6
    time_limit: float | None = None
    seed: int = 0
    report: Callable[[Progress], None] | None = None
    start: Ints | None = None
    multipliers: Floats | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Time since the solve began."""
        return time.perf_counter() - self.began

    @property
    def remaining(self) -> float | None:
        """Seconds left, never negative; None without a limit."""
        return None if self.time_limit is None else max(0.0, self.time_limit - self.seconds)

    @property
    def is_over(self) -> bool:
        """Whether the time is spent."""
        return self.time_limit is not None and self.seconds >= self.time_limit

    def tell(
        self, method: str, bound: float | None, incumbent: float | None, stage: str = ""
    ) -> None:
        """Report progress to whoever asked for it."""
        if self.report is not None:
            self.report(Progress(self.seconds, method, bound, incumbent, stage))


@dataclass(frozen=True)
class Outcome:
    """What a method found.

    Attributes:
        indices: The best feasible choice of model columns, or None.
        bound: Proven lower bound on the model's value (`Model.value`), or None.
        exhausted: The whole space was searched: `indices` is optimal to the gap asked for or, if
            it is None, nothing is feasible.
        solver: Name of the program behind the method, e.g. `"HiGHS 1.15.1"`; "" for own code.
        multipliers: Dual multiplier of every row of the model at the bound, or None.
        note: Anything the user should know, in a sentence.
    """

    indices: Ints | None
    bound: float | None
    exhausted: bool
    solver: str = ""
    multipliers: Floats | None = None
    note: str = ""


class Method(Protocol):
    """One way to solve a model."""

    @property
    def name(self) -> str:
        """The name by which `solve(method=…)` finds it."""
        ...

    def refusal(self, model: Model) -> str | None:
        """Return why this model cannot be solved this way, as a clause; None if it can."""
        ...

    def solve(self, model: Model, run: Run) -> Outcome:
        """Solve the model within the terms of the run.

        Args:
            model: The compiled problem.
            run: When to stop and whom to tell; check `run.is_over` often.

        Returns:
            The best choice found and what was proven. `indices`, when given, must satisfy
            `model.is_feasible`.
        """
        ...
