"""Integer linear programming through PuLP, with HiGHS or CBC, whichever is installed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pulp

from mpsearch_solvers.errors import BackendError
from mpsearch_solvers.method import Outcome, Run, relative_gap
from mpsearch_solvers.model import Model, Row
from mpsearch_solvers.problem import Bools, Ints
from mpsearch_solvers.scaling import Scaled, scale_row, scale_table

# MIP solvers keep a row to 1e-6 or so in scaled units; an answer over a budget by the exact sum
# is cut off and the program solved again. After this many cuts the limit itself is tightened.
_CUTS = 40
_TOLERANCE = 1e-9


def available_backends() -> tuple[str, ...]:
    """Return the names of the PuLP solvers on this machine that suit, best first.

    Which names exist differs between PuLP 3 and 4, so they are asked for, never assumed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        names = pulp.listSolvers(onlyAvailable=True)
    order = {"HiGHS": 0}
    suited = [name for name in names if name == "HiGHS" or "CBC" in name or "COIN" in name]
    return tuple(sorted(suited, key=lambda name: order.get(name, 1)))


@dataclass(frozen=True)
class _Answer:
    """What one call of the MIP solver gave, in scaled units."""

    indices: Ints | None
    bound: float | None
    is_infeasible: bool


@dataclass(frozen=True)
class _Verdict:
    """How a call of the MIP solver ended, in terms that PuLP 3 and 4 share."""

    is_infeasible: bool
    has_solution: bool
    is_optimal: bool


def _read_verdict(stats: object, program: Any) -> _Verdict:  # noqa: ANN401 - PuLP's problem, untyped
    """Read what `LpProblem.solve` returned: a code in PuLP 3, an object in PuLP 4."""
    if isinstance(stats, int):
        # PuLP 3: status 1 optimal, -1 infeasible; solution 1 optimal, 2 integer feasible.
        solution = program.sol_status
        return _Verdict(stats == -1, solution in {1, 2}, stats == 1 and solution == 1)
    status = stats.status  # type: ignore[attr-defined]
    has_solution = bool(stats.has_solution)  # type: ignore[attr-defined]
    return _Verdict(status.name == "Infeasible", has_solution, status.name == "Optimal")


class Ilp:
    """The textbook 0-1 program, handed to a MIP solver."""

    name = "ilp"

    def __init__(self, backend: str | None = None) -> None:
        """Choose the MIP solver.

        Args:
            backend: One of :func:`available_backends`; None for the best of them.

        Raises:
            BackendError: If it is not installed, or none is.
        """
        names = available_backends()
        if not names or (backend is not None and backend not in names):
            raise BackendError(
                f"no MIP solver {backend or ''!r} for PuLP here (found: {', '.join(names) or '-'});"
                " install highspy"
            )
        self.backend = backend or names[0]

    def refusal(self, model: Model) -> str | None:
        """Return why the model is not linear, or None."""
        if model.interactions is not None:
            return "pairs of choices interact; use quadratic, brute_force or local_search"
        return None

    def solve(self, model: Model, run: Run) -> Outcome:
        """Solve, check the answer by exact sums, and cut and solve again until it is within."""
        solver = f"{self.backend} through PuLP {pulp.__version__}"
        if any(_is_hopeless(model, row) for row in model.rows):
            return Outcome(None, None, exhausted=True, solver=solver)
        program = _Program(model, self.backend)
        outcome = self._solve_within(model, run, program)
        return replace(outcome, solver=solver)

    def _solve_within(self, model: Model, run: Run, program: _Program) -> Outcome:
        bound: float | None = None
        is_relaxed = True
        # Half, so that the solver's rounding does not leave the proof just outside.
        rel_gap = 0.5 * run.gap
        for attempt in range(10 * _CUTS):
            if run.is_over:
                break
            answer = program.run(rel_gap, run, self.name)
            if is_relaxed and answer.bound is not None:
                bound = max(bound, answer.bound) if bound is not None else answer.bound
            if answer.is_infeasible:
                return Outcome(None, bound, exhausted=is_relaxed)
            if answer.indices is None:
                break
            overrun = [row for row in model.rows if _exceeds(model, answer.indices, row)]
            if not overrun:
                value = model.value(answer.indices)
                # The program's objective is shifted, so its relative gap is not ours.
                if rel_gap > 0.0 and not program.proves(value, bound, run.gap):
                    rel_gap = 0.0
                    if not run.is_over:
                        continue
                return self._finish(value, bound, answer.indices, program, run)
            if attempt < _CUTS:
                program.cut(answer.indices, overrun)
            else:
                is_relaxed = False
                program.tighten(answer.indices, overrun)
        return Outcome(None, bound, exhausted=False)

    def _finish(
        self, value: float, bound: float | None, indices: Ints, program: _Program, run: Run
    ) -> Outcome:
        note = ""
        if bound is not None:
            tolerance = program.tolerance(value)
            if value - bound <= tolerance and not program.proves(value, bound, run.gap):
                bound = value
                note = f"proven to {self.backend}'s own tolerance, about {tolerance:.1g}"
            else:
                bound = min(bound, value) - tolerance
        run.tell(self.name, bound, value, "solved")
        gap = None if bound is None else relative_gap(value, bound)
        return Outcome(indices, bound, exhausted=gap is not None and gap <= run.gap, note=note)


def _exceeds(model: Model, indices: Ints, row: Row) -> bool:
    return not row.epigraph and model.overrun(indices, row) > 0.0


def _is_hopeless(model: Model, row: Row) -> bool:
    """Return whether even the cheapest options exceed a row."""
    cheapest = np.where(model.allowed, row.cost, np.inf).argmin(axis=1)
    return _exceeds(model, cheapest, row)


class _Program:
    """The PuLP problem of a model, in scaled units."""

    def __init__(self, model: Model, backend: str) -> None:
        self.model = model
        self.backend = backend
        self.program = pulp.LpProblem("allocation", pulp.LpMinimize)
        self.places = np.argwhere(model.allowed)
        self.variables = [
            self.program.add_variable(f"x_{group}_{column}", 0, 1, "Integer")
            for group, column in self.places.tolist()
        ]
        self.at = {
            (group, column): variable
            for (group, column), variable in zip(self.places.tolist(), self.variables, strict=True)
        }
        self.objective = scale_table(np.where(model.allowed, model.objective, 0.0), model.allowed)
        self.peak = _peak_scale(model)
        self._build()

    def _build(self) -> None:
        groups: list[list[Any]] = [[] for _ in range(self.model.shape[0])]
        for (group, _), variable in zip(self.places.tolist(), self.variables, strict=True):
            groups[group].append(variable)
        if self.peak is None:
            self.program.setObjective(self._dot(self.objective))
        else:
            value = self.program.add_variable("peak", None, None, "Continuous")
            self.program.setObjective(1.0 * value)
        for members in groups:
            self.program += pulp.lpSum(members) == 1
        self.rows: dict[int, tuple[Row, Scaled, Any]] = {}
        for number, row in enumerate(self.model.rows):
            if row.epigraph:
                assert self.peak is not None
                scaled = Scaled(row.cost / self.peak, self.peak, 0.0)
                self.program += self._dot(scaled) - value <= row.limit / self.peak
                continue
            scaled, limit = scale_row(self.model, row)
            if scaled.table.any():
                constraint = self._dot(scaled) <= max(limit, 0.0)
                self.program.addConstraint(constraint, f"row_{number}")
                self.rows[id(row)] = (row, scaled, max(limit, 0.0))

    def _dot(self, scaled: Scaled) -> Any:  # noqa: ANN401 - PuLP's expressions, untyped
        coefficients = scaled.table[self.places[:, 0], self.places[:, 1]]
        used = np.flatnonzero(coefficients)
        return pulp.lpSum(
            float(coefficients[place]) * self.variables[place] for place in used.tolist()
        )

    def run(self, gap: float, run: Run, method: str) -> _Answer:
        """Solve once."""
        solver = self._solver(gap, run, method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                stats = self.program.solve(solver)
            except pulp.PulpSolverError as error:
                raise BackendError(f"{self.backend} failed: {error}") from error
        verdict = _read_verdict(stats, self.program)
        if verdict.is_infeasible:
            return _Answer(None, None, is_infeasible=True)
        indices = self._read() if verdict.has_solution else None
        return _Answer(indices, self._bound(gap, verdict, indices), is_infeasible=False)

    def _solver(self, gap: float, run: Run, method: str) -> Any:  # noqa: ANN401 - PuLP's solvers, untyped
        options: dict[str, Any] = {"msg": False, "gapRel": gap, "timeLimit": run.remaining}
        if self.backend == "HiGHS":
            options |= {
                "gapAbs": 0.0,
                "mip_feasibility_tolerance": _TOLERANCE,
                "primal_feasibility_tolerance": _TOLERANCE,
                "dual_feasibility_tolerance": _TOLERANCE,
                "random_seed": run.seed % (1 << 31),
            }
            if run.report is not None:
                options |= _listener(self, run, method)
        else:
            # By default CBC asks of a new answer that it is better by 1e-5. Its tolerance for rows
            # stays: tighter ones made its preprocessing cut off the optimum.
            tight = {"increment": 0.0, "allow": 0.0, "integerT": _TOLERANCE, "dualT": _TOLERANCE}
            options["options"] = [f"{name} {value}" for name, value in tight.items()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return pulp.getSolver(self.backend, **options)

    def restore(self, value: float) -> float:
        """Return a value of the program's objective in original units."""
        return self.objective.restore(value) if self.peak is None else value * self.peak

    def tolerance(self, value: float) -> float:
        """Return how much the solver's own rounding may hide, in units of the objective."""
        scale = self.objective.scale if self.objective.table.any() else 0.0
        if self.peak is not None:
            scale = self.peak
        return _TOLERANCE * max(scale, abs(value - self.restore(0.0))) + 4.0 * math.ulp(value)

    def proves(self, value: float, bound: float | None, gap: float) -> bool:
        """Return whether a bound less the solver's own rounding proves a gap."""
        if bound is None:
            return True  # there is nothing to prove with, and asking again would not change that
        return relative_gap(value, min(bound, value) - self.tolerance(value)) <= gap

    def _bound(self, gap: float, verdict: _Verdict, indices: Ints | None) -> float | None:
        native = getattr(self.program, "solverModel", None)
        if native is not None and self.backend == "HiGHS":
            bound = float(native.getInfo().mip_dual_bound)
            return self.restore(bound) if np.isfinite(bound) else None
        if not verdict.is_optimal or indices is None:
            return None
        # What CBC prints has too few digits to be a bound.
        groups = np.arange(len(indices))
        value = math.fsum(self.objective.table[groups, indices].tolist())
        if self.peak is not None:
            value = self.model.value(indices) / self.peak
        return self.restore(value - gap * abs(value))

    def _read(self) -> Ints | None:
        values = np.full(self.model.shape, -np.inf)
        chosen = [variable.varValue for variable in self.variables]
        if any(value is None for value in chosen):
            return None
        values[self.places[:, 0], self.places[:, 1]] = chosen
        indices: Ints = values.argmax(axis=1)
        return indices

    def cut(self, indices: Ints, overrun: list[Row]) -> None:
        """Cut off an answer over a limit, and all that choose nothing cheaper in that row."""
        groups = np.arange(len(indices))
        for row in overrun:
            dear: Bools = self.model.allowed & (row.cost >= row.cost[groups, indices][:, None])
            members = [self.at[group, column] for group, column in np.argwhere(dear).tolist()]
            self.program += pulp.lpSum(members) <= len(indices) - 1

    def tighten(self, indices: Ints, overrun: list[Row]) -> None:
        """Lower the limits of rows by what an answer exceeds them."""
        for row in overrun:
            _, scaled, limit = self.rows[id(row)]
            excess = 2.0 * self.model.overrun(indices, row) / scaled.scale
            limit = max(limit - max(excess, 1e-12), 0.0)
            self.rows[id(row)] = (row, scaled, limit)
            self.program += self._dot(scaled) <= limit


def _peak_scale(model: Model) -> float | None:
    if model.peak is None:
        return None
    largest = max(float(np.abs(row.cost).max()) for row in model.rows if row.epigraph)
    return largest or 1.0


def _listener(program: _Program, run: Run, method: str) -> dict[str, Any]:
    """Return PuLP options that make HiGHS report its bound and incumbent."""
    import highspy

    def report(_kind: object, _text: str, data: Any, _in: object, _user: object) -> None:  # noqa: ANN401
        bound, incumbent = float(data.mip_dual_bound), float(data.mip_primal_bound)
        run.tell(
            method,
            program.restore(bound) if abs(bound) < 1e30 else None,
            program.restore(incumbent) if abs(incumbent) < 1e30 else None,
            "branch and cut",
        )

    kinds = [highspy.cb.HighsCallbackType.kCallbackMipLogging]
    return {"callbackTuple": (report, None), "callbacksToActivate": kinds}
