"""What `auto` does: the method for a problem, and the reason in words."""

from __future__ import annotations

from mpsearch_solvers.brute_force import count_choices
from mpsearch_solvers.errors import MethodError
from mpsearch_solvers.model import Model
from mpsearch_solvers.registry import method_names

_FEW = 200_000


def select(model: Model) -> tuple[str, str]:
    """Choose a method for a model.

    Args:
        model: The compiled problem.

    Returns:
        The method's name and why it was chosen.

    Raises:
        MethodError: If no installed method can solve it.
    """
    if model.interactions is not None:
        if "quadratic" in method_names():
            return "quadratic", "pairs of choices interact"
        if count_choices(model) <= _FEW:
            return "brute_force", "pairs of choices interact and there are few allocations"
        raise MethodError("no method here solves so large a problem with interactions")
    if model.peak is not None:
        return "ilp", "a peak is minimised"
    return "decomposition", "a linear objective with one option per group"
