"""The smallest allocation whose measured metric drops no more than allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from mpsearch.allocating import Monotone, frontier
from mpsearch.errors import InfeasibleError, InputError
from mpsearch.progress import OnProgress, Progress
from mpsearch.schemas import Allocation, Costs, FrontierPoint, Profile
from mpsearch.verification import AllocationRuns

__all__ = ["Goal", "smallest_allocation"]

LOOK_BELOW = 4
"""Cheaper points measured beyond the first that fails, because drops are not monotone."""

_CHOSEN = (
    "the allocation was chosen by measuring on the verification data, so the drop measured there "
    "is the one that was required and no independent estimate"
)


@dataclass(frozen=True)
class Goal:
    """Least use of a resource within a measured drop of the metric.

    Attributes:
        resource: The resource to use least of.
        max_drop: Largest drop of the metric, as a fraction: 0.01 is one point of accuracy.
    """

    resource: str
    max_drop: float

    @classmethod
    def parse(cls, text: str, max_drop: float | None) -> Self:
        """Read a goal as the command line takes it.

        Args:
            text: `min:RESOURCE`.
            max_drop: Largest drop of the metric.

        Returns:
            The goal.

        Raises:
            InputError: Not of this form, or the drop is missing or negative.
        """
        kind, _, resource = text.partition(":")
        if kind != "min" or not resource:
            raise InputError(f"goal {text!r}: write min:RESOURCE, such as min:weight_memory")
        if max_drop is None:
            raise InputError(f"goal {text!r} needs the drop that is allowed: --max-drop 0.01")
        if not 0 <= max_drop < 1:
            raise InputError(f"max drop {max_drop} must be at least 0 and below 1")
        return cls(resource, max_drop)

    def check_budget(self, budget: Mapping[str, str | float]) -> None:
        """Check that budgets can be kept beside the goal.

        Args:
            budget: Resource -> amount.

        Raises:
            InputError: One is of the resource that is minimised.
        """
        if self.resource in budget:
            raise InputError(f"{self.resource} is minimised, so it takes no budget")


def smallest_allocation(
    goal: Goal,
    profile: Profile,
    costs: Costs,
    budget: Mapping[str, str | float],
    solved: Callable[[Mapping[str, str | float]], Allocation],
    run: AllocationRuns,
    on_progress: OnProgress,
    monotone: Monotone = "keep",
) -> Allocation:
    """Find the cheapest frontier point whose measured drop is allowed.

    The frontier is searched by bisection on measured drops, and then a few points further down,
    since measured drops need not be monotone. Measurements are made on the verification data: the
    drop that is reported is the drop that was required.

    Args:
        goal: What to use least of, and the drop that is allowed.
        profile: Predicted losses.
        costs: Prices.
        budget: Budgets of other resources.
        solved: Solves for budgets; gives the certificate at the point found.
        run: Measures allocations.
        on_progress: Called after every measurement.
        monotone: As in `allocate`.

    Returns:
        The allocation of least predicted loss at the use found, within all budgets.

    Raises:
        InputError: The loss has no metric, or the resource has a budget of its own.
        InfeasibleError: Not even the dearest point keeps the drop.
    """
    if run.loss.metric is None:
        raise InputError(f"the loss {run.loss.name} has no metric whose drop could be limited")
    goal.check_budget(budget)
    curve = frontier(profile, costs, goal.resource, budget=budget or None, monotone=monotone)
    points = curve.points
    reference = run({}).metric
    assert reference is not None
    measured: dict[int, float] = {}

    def drop(index: int) -> float:
        if index not in measured:
            metric = run(_layers(profile, points[index])).metric
            assert metric is not None
            measured[index] = reference - metric
            on_progress(
                Progress("solve", len(measured), len(points), f"drop {measured[index]:.2%}")
            )
        return measured[index]

    found = _cheapest_allowed(len(points), lambda index: drop(index) <= goal.max_drop)
    if found is None:
        best = min(measured.values())
        raise InfeasibleError(
            f"none of the {len(measured)} dearest allocations of the frontier keeps the drop of "
            f"{run.loss.metric_name} within {goal.max_drop:.2%}: the smallest drop measured is "
            f"{best:.2%}; allow more or offer dearer options"
        )
    for index in range(found, len(points)):
        answer = solved({**budget, goal.resource: points[index].usage})
        metric = run(answer.layers).metric
        # A tie in predicted loss may give another allocation of the same use; it must keep the
        # drop too.
        if metric is not None and reference - metric <= goal.max_drop:
            return answer.model_copy(
                update={
                    "goal": f"min:{goal.resource}",
                    "max_drop": goal.max_drop,
                    "allocations_measured": len(measured),
                    "warnings": [*answer.warnings, _CHOSEN],
                }
            )
    raise InfeasibleError(
        f"none of the {len(measured)} allocations measured keeps the drop within "
        f"{goal.max_drop:.2%} in its certified form"
    )


def _cheapest_allowed(count: int, allowed: Callable[[int], bool]) -> int | None:
    """Bisect for the first allowed index, then look a few indices below it."""
    low, high = 0, count - 1
    if not allowed(high):
        passing = [
            index for index in range(max(0, count - 1 - LOOK_BELOW), count) if allowed(index)
        ]
        return passing[0] if passing else None
    while low < high:
        middle = (low + high) // 2
        if allowed(middle):
            high = middle
        else:
            low = middle + 1
    below = [index for index in range(max(0, high - LOOK_BELOW), high) if allowed(index)]
    return below[0] if below else high


def _layers(profile: Profile, point: FrontierPoint) -> dict[str, str]:
    return {
        layer: option
        for group, option in point.groups.items()
        for layer in profile.layers_of(group)
    }
