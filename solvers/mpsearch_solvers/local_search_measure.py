"""Measuring allocations, here or through an executor, each result handed over as it arrives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpsearch_solvers.errors import MethodError
from mpsearch_solvers.method import Run
from mpsearch_solvers.problem import Ints

Objective = Callable[[Ints], float | Sequence[float]]
Key = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Measured:
    """One allocation that was tried.

    Attributes:
        indices: Model column of every model group, shape (groups,).
        values: What the objective returned, in its own units; empty when it failed.
        error: Why it failed; "" when it did not.
    """

    indices: Ints
    values: tuple[float, ...]
    error: str = ""


@dataclass(frozen=True)
class Meter:
    """How allocations are measured.

    Attributes:
        objective: Called with an int array, shape (groups,); returns what to minimise.
        objectives: How many numbers it returns.
        executor: Where it is called; None calls it in this thread.
        catch: Exceptions that fail one measurement instead of ending the run.
    """

    objective: Objective
    objectives: int = 1
    executor: Executor | None = None
    catch: tuple[type[Exception], ...] = ()

    def measure(
        self, batch: Mapping[Key, Ints], run: Run, settle: Callable[[Measured], None]
    ) -> bool:
        """Measure a batch.

        Args:
            batch: What the objective is called with, by model columns.
            run: Its time limit ends the batch; what an executor has begun is not waited for.
            settle: Called in this thread with every result, as soon as it is there.

        Returns:
            Whether all were measured; False when the time ended first.

        Raises:
            MethodError: If the objective returns no number, or another count than promised.
        """
        if self.executor is not None:
            return self._through(self.executor, batch, run, settle)
        for key, columns in batch.items():
            if run.is_over:
                return False
            try:
                given = self.objective(columns)
            except self.catch as error:
                settle(_failed(key, error))
            else:
                settle(self._read(key, given))
        return True

    def _through(
        self,
        executor: Executor,
        batch: Mapping[Key, Ints],
        run: Run,
        settle: Callable[[Measured], None],
    ) -> bool:
        futures: dict[Future[Any], Key] = {}
        try:
            for key, columns in batch.items():
                futures[executor.submit(self.objective, columns)] = key
            pending = set(futures)
            while pending:
                done, pending = wait(pending, run.remaining, return_when=FIRST_COMPLETED)
                if not done:
                    return False
                self._collect(done, futures, settle)
        finally:
            for future in futures:
                future.cancel()
        return True

    def _collect(
        self,
        done: set[Future[Any]],
        futures: Mapping[Future[Any], Key],
        settle: Callable[[Measured], None],
    ) -> None:
        """Settle everything that ended before the exception of one of them is raised."""
        raised: BaseException | None = None
        for future in sorted(done, key=lambda each: futures[each]):
            error = future.exception()
            if error is None:
                settle(self._read(futures[future], future.result()))
            elif isinstance(error, self.catch):
                settle(_failed(futures[future], error))
            else:
                raised = error
        if raised is not None:
            raise raised

    def _read(self, key: Key, given: Any) -> Measured:  # noqa: ANN401 - the caller's
        try:
            values = tuple(float(value) for value in np.atleast_1d(given))
        except (TypeError, ValueError) as error:
            raise MethodError(f"the objective returned {given!r}; return a float") from error
        if len(values) != self.objectives:
            raise MethodError(
                f"the objective returned {len(values)} values, not the {self.objectives} promised"
            )
        indices = np.array(key, dtype=np.intp)
        if all(math.isfinite(value) for value in values):
            return Measured(indices, values)
        return Measured(indices, (), f"the objective returned {given!r}")


def _failed(key: Key, error: BaseException) -> Measured:
    return Measured(np.array(key, dtype=np.intp), (), f"{type(error).__name__}: {error}")
