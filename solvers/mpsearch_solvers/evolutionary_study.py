"""Ask and tell over allocations: sampler in memory, finished trials on record, no repeats."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpsearch_solvers.errors import MethodError
from mpsearch_solvers.local_search_measure import Measured
from mpsearch_solvers.method import Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.problem import Ints

SAMPLERS = ("nsga2", "nsga3", "tpe")
_PROBLEM = "mpsearch:problem"
_OVER = "over_budget"
_ERROR = "error"


def load_optuna() -> Any:  # noqa: ANN401 - an optional, untyped package
    """Import Optuna.

    Returns:
        The package.

    Raises:
        MethodError: If it is not installed, or older than version 5.
    """
    try:
        import optuna
    except ImportError as error:
        raise MethodError(
            "evolutionary search needs Optuna: pip install 'mpsearch[evolve]'"
        ) from error
    if not hasattr(optuna.trial.Trial, "set_constraint"):
        raise MethodError(
            f"evolutionary search needs Optuna 5 or later, found {optuna.__version__}: "
            "pip install --upgrade 'mpsearch[evolve]'"
        )
    return optuna


class AllocationStudy:
    """One Optuna study whose trials are allocations within the limits."""

    def __init__(
        self,
        model: Model,
        run: Run,
        storage: object,
        name: str,
        sampler: object,
        population: int,
        objectives: int,
        fingerprint: str,
    ) -> None:
        """Open the study and take over the trials that earlier runs finished.

        Raises:
            MethodError: If the study on record is about another problem, or the sampler unknown.
        """
        self.optuna = load_optuna()
        self.model = model
        self.menus = [np.flatnonzero(row) for row in model.allowed]
        self.names = _names(model)
        self.space = {
            name: self.optuna.distributions.IntDistribution(0, len(menu) - 1)
            for name, menu in zip(self.names, self.menus, strict=True)
            if len(menu) > 1
        }
        self.tried: dict[tuple[int, ...], Measured] = {}
        directions = ["minimize"] * objectives
        verbosity = self.optuna.logging.get_verbosity()
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        try:
            self.record: Any = None
            finished: list[Any] = []
            if storage is not None:
                self.record = self._open_record(storage, name, directions)
                finished = self._read_record(fingerprint, objectives)
            # A resumed run must not draw again what the first one drew.
            seed = (run.seed + 1_000_003 * len(finished)) % (1 << 32)
            self.study = self.optuna.create_study(
                directions=directions, sampler=self._sampler(sampler, population, seed)
            )
        finally:
            self.optuna.logging.set_verbosity(verbosity)
        for trial in finished:
            self.study.add_trial(trial)
            self._remember(trial)
        self.resumed = len(self.tried)

    def _open_record(self, storage: object, name: str, directions: list[str]) -> Any:  # noqa: ANN401
        return self.optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )

    def _read_record(self, fingerprint: str, objectives: int) -> list[Any]:
        record = self.record
        known = record.user_attrs.get(_PROBLEM)
        if known is None and not record.get_trials(deepcopy=False):
            record.set_user_attr(_PROBLEM, fingerprint)
        elif known != fingerprint or len(record.directions) != objectives:
            raise MethodError(
                f"study {record.study_name!r} on record is about another problem (other groups, "
                "options, costs, limits or number of objectives); choose another study name"
            )
        states = self.optuna.trial.TrialState
        return list(record.get_trials(deepcopy=True, states=(states.COMPLETE, states.FAIL)))

    def _sampler(self, sampler: object, population: int, seed: int) -> Any:  # noqa: ANN401
        if not isinstance(sampler, str):
            return sampler
        samplers = self.optuna.samplers
        if sampler == "nsga2":
            return samplers.NSGAIISampler(population_size=population, seed=seed)
        if sampler == "nsga3":
            with warnings.catch_warnings():
                # Optuna calls it experimental since 3.2; whoever names it here knows it.
                warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
                return samplers.NSGAIIISampler(population_size=population, seed=seed)
        if sampler == "tpe":
            return samplers.TPESampler(n_startup_trials=population, seed=seed)
        raise MethodError(
            f"unknown sampler {sampler!r}; give {', '.join(SAMPLERS)} or an Optuna sampler"
        )

    def propose(self, indices: Ints) -> None:
        """Queue an allocation to be tried before the sampler draws its own."""
        params = {
            name: int(np.searchsorted(menu, column))
            for name, menu, column in zip(self.names, self.menus, indices.tolist(), strict=True)
            if name in self.space
        }
        self.study.enqueue_trial(params)

    def ask(self) -> tuple[Any, Ints]:
        """Return a new trial and its choice of model columns, constraints set."""
        trial = self.study.ask(self.space)
        indices = np.array(
            [
                menu[trial.params[name]] if name in self.space else menu[0]
                for name, menu in zip(self.names, self.menus, strict=True)
            ],
            dtype=np.intp,
        )
        for number, row in enumerate(self.model.rows):
            if row.epigraph:
                continue
            excess = self.model.overrun(indices, row)
            spread = float(np.ptp(row.cost, axis=1).sum()) or 1.0
            # Kept above zero where it is above zero: feasible means feasible to the last digit.
            share = max(excess / spread, 1e-300) if excess > 0.0 else excess / spread
            trial.set_constraint(f"{number}:{row.resource}:{row.side}", share)
        return trial, indices

    def tell_over_budget(self, trial: Any, values: Sequence[float]) -> None:  # noqa: ANN401
        """Finish a trial that breaks a limit; nothing is measured, nothing goes on record.

        Samplers rank such trials by their violation alone, so the values do not matter.
        """
        trial.set_user_attr(_OVER, True)
        self.study.tell(trial, list(values))

    def tell_known(self, trial: Any, known: Measured) -> None:  # noqa: ANN401
        """Finish a trial whose allocation was tried before."""
        if known.error:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, list(known.values))

    def tell(self, trial: Any, measured: Measured) -> None:  # noqa: ANN401
        """Finish a trial and put it on record before anything else happens."""
        if measured.error:
            trial.set_user_attr(_ERROR, measured.error)
        self.tell_known(trial, measured)
        if self.record is not None:
            self.record.add_trial(self.study.get_trials(deepcopy=False)[trial.number])
        self.tried[tuple(measured.indices.tolist())] = measured

    def drop(self, trial: Any) -> None:  # noqa: ANN401
        """Close a trial that time did not allow; it goes on no record and may be tried again."""
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _remember(self, trial: Any) -> None:  # noqa: ANN401
        if not self.space.keys() <= trial.params.keys():
            return
        columns = [
            int(menu[trial.params[name]] if name in self.space else menu[0])
            for name, menu in zip(self.names, self.menus, strict=True)
        ]
        error = str(trial.user_attrs.get(_ERROR, "")) or ("" if trial.values else "failed")
        values = tuple(trial.values or ())
        self.tried[tuple(columns)] = Measured(np.array(columns, dtype=np.intp), values, error)


def _names(model: Model) -> list[str]:
    """Return the name of every model group: that of its first member."""
    first = {place: group for group, place in reversed(list(enumerate(model.member.tolist())))}
    return [model.problem.groups[first[place]] for place in range(model.shape[0])]


def fingerprint_of(model: Model, *, with_loss: bool) -> str:
    """Return a digest of what a study's trials depend on.

    Args:
        model: The model.
        with_loss: Whether the losses count: they do when they are the objective.

    Returns:
        A hexadecimal SHA-256 digest.
    """
    digest = hashlib.sha256()
    problem = model.problem
    limits = {name: limit.to_json() for name, limit in problem.limits.items()}
    head: list[object] = [_names(model), problem.options, limits, problem.goal.max_loss]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for array in (model.allowed, model.member, model.column, *(row.cost for row in model.rows)):
        digest.update(np.ascontiguousarray(array).tobytes())
    if with_loss:
        digest.update(np.ascontiguousarray(model.objective).tobytes())
        if model.interactions is not None:
            digest.update(np.ascontiguousarray(model.interactions.loss).tobytes())
    return digest.hexdigest()
