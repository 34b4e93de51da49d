"""Where searches begin: the exact answer to the linear part of the problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpsearch_solvers.greedy import Greedy
from mpsearch_solvers.method import Outcome, Run
from mpsearch_solvers.model import Model, compile_problem
from mpsearch_solvers.problem import Ints
from mpsearch_solvers.registry import load_method
from mpsearch_solvers.selection import select

_GAP = 1e-4
_SHARE = 0.5
_GRACE = 1.0


def solve_linear(model: Model, run: Run) -> Outcome:
    """Solve the model without its interactions, for a start that keeps every limit.

    Interactions change no limit, so a proof that nothing is feasible here holds for the whole.

    Args:
        model: The model, with or without interactions.
        run: Terms of the whole solve; this takes at most half of the time that is left.

    Returns:
        The outcome for the linear model: its `bound` does not bound a model with interactions.
    """
    if run.start is not None and _is_allowed(model, run.start):
        return Outcome(run.start, None, exhausted=False)
    plain = compile_problem(replace(model.problem, interactions=None))
    plain = plain.restricted(model.allowed)
    remaining = run.remaining
    terms = Run(gap=_GAP, time_limit=None if remaining is None else max(0.05, _SHARE * remaining))
    found = load_method(select(plain)[0]).solve(plain, terms)
    if found.indices is None and not found.exhausted and plain.peak is None:
        # Out of time before the first answer: one greedy pass is better than none.
        return Greedy().solve(plain, Run(time_limit=_GRACE))
    return found


def _is_allowed(model: Model, indices: Ints) -> bool:
    offered = model.allowed[np.arange(model.shape[0]), indices].all()
    return bool(offered) and model.is_feasible(indices)
