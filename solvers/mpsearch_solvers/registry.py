"""The methods by name. A new method is one class and one line here."""

from __future__ import annotations

import importlib

from mpsearch_solvers.errors import MethodError
from mpsearch_solvers.method import Method

AUTO = "auto"

# Loaded on first use: a method may need an optional package (optuna) or a slow import (pulp).
_CLASSES = {
    "decomposition": "mpsearch_solvers.decomposition:Decomposition",
    "dp": "mpsearch_solvers.dynamic_programming:DynamicProgramming",
    "ilp": "mpsearch_solvers.ilp:Ilp",
    "greedy": "mpsearch_solvers.greedy:Greedy",
    "brute_force": "mpsearch_solvers.brute_force:BruteForce",
    "quadratic": "mpsearch_solvers.quadratic:Quadratic",
    "evolutionary": "mpsearch_solvers.evolutionary:EvolutionarySearch",
    "local_search": "mpsearch_solvers.local_search:LocalSearch",
}


def method_names() -> tuple[str, ...]:
    """Return the names that `solve(method=…)` accepts, `auto` first."""
    return (AUTO, *_CLASSES)


def load_method(name: str) -> Method:
    """Return a method by name, with its default settings.

    Args:
        name: One of :func:`method_names`, except `auto`.

    Returns:
        The method.

    Raises:
        MethodError: If there is no such method.
    """
    place = _CLASSES.get(name)
    if place is None:
        raise MethodError(f"unknown method {name!r}; known: {', '.join(method_names())}")
    module, _, attribute = place.partition(":")
    method: Method = getattr(importlib.import_module(module), attribute)()
    return method
