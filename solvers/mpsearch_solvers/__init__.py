"""Pure optimisation for precision allocation: numpy in, allocation out."""

from mpsearch_solvers.errors import BackendError, MethodError, ProblemError, SolverError
from mpsearch_solvers.goal import Goal
from mpsearch_solvers.method import Method, Outcome, Progress, Run
from mpsearch_solvers.model import Model
from mpsearch_solvers.pareto import Frontier, frontier
from mpsearch_solvers.problem import Interactions, Limit, PeakRows, Problem
from mpsearch_solvers.registry import method_names
from mpsearch_solvers.solution import Solution
from mpsearch_solvers.solving import solve

__all__ = [
    "BackendError",
    "Frontier",
    "Goal",
    "Interactions",
    "Limit",
    "Method",
    "MethodError",
    "Model",
    "Outcome",
    "PeakRows",
    "Problem",
    "ProblemError",
    "Progress",
    "Run",
    "Solution",
    "SolverError",
    "frontier",
    "method_names",
    "solve",
]
