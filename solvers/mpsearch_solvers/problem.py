"""The allocation problem: groups, their options, what they cost, and what may be spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpsearch_solvers.goal import Goal

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Limit:
    """What may be spent of one resource: `min <= usage <= max`, in the unit of its costs."""

    max: float | None = None
    min: float | None = None

    def to_json(self) -> float | dict[str, float]:
        """Return the limit as it stands in a problem file."""
        if self.min is None and self.max is not None:
            return self.max
        bounds = {"min": self.min, "max": self.max}
        return {side: value for side, value in bounds.items() if value is not None}


@dataclass(frozen=True, eq=False)
class PeakRows:
    """Costs of a resource whose usage is a peak over schedule steps, not a sum.

    Attributes:
        steps: Name of every schedule step.
        cost: What each option occupies at each step, shape (steps, groups, options).
        base: What is occupied at each step whatever is chosen, shape (steps,).
    """

    steps: tuple[str, ...]
    cost: Floats
    base: Floats


@dataclass(frozen=True, eq=False)
class Interactions:
    """Extra loss of pairs of choices, in sparse form.

    Attributes:
        groups: The two groups of each pair, shape (pairs, 2).
        options: The option of each of the two that triggers the loss, shape (pairs, 2).
        loss: The loss added when both are chosen, shape (pairs,).
    """

    groups: Ints
    options: Ints
    loss: Floats

    @classmethod
    def from_matrix(cls, matrix: Floats, allowed: Bools) -> Interactions:
        """List the pairs of a square matrix that are not zero.

        Args:
            matrix: Shape (groups x options) squared, groups outermost; an unordered pair's loss
                stands in both its cells, of which the upper one is read.
            allowed: Which options a group has, shape (groups, options); pairs with others are left
                out.

        Returns:
            The pairs, in row order.
        """
        width = allowed.shape[1]
        usable = np.outer(allowed.ravel(), allowed.ravel())
        first, second = np.nonzero(np.triu(np.where(usable, matrix, 0.0), 1))
        return cls(
            np.stack([first // width, second // width], axis=1),
            np.stack([first % width, second % width], axis=1),
            matrix[first, second],
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """One allocation problem: give every group one option, within every limit, for least loss.

    Build it with :meth:`from_dict` or :meth:`from_arrays`, which check it; the constructor
    does not. Arrays are float64 of shape (groups, options); entries outside `allowed` carry
    `inf` loss and zero cost and are never read.

    Attributes:
        groups: Name of every group.
        options: Names of the columns, for every group; may be shorter than the arrays are wide.
        loss: Loss of giving an option to a group.
        allowed: Which columns are options of the group.
        costs: What each option spends of each additive resource; NaN where an unlimited
            resource has no price.
        peaks: Resources whose usage is a peak over schedule steps.
        limits: What may be spent of each resource.
        fixed: Groups whose option is given, by name.
        forbidden: (group, option) pairs that may not be chosen.
        ties: Sets of groups that take an option of the same name.
        goal: What to minimise.
        interactions: Extra loss of pairs of choices, or None.
    """

    groups: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    loss: Floats
    allowed: Bools
    costs: Mapping[str, Floats]
    peaks: Mapping[str, PeakRows]
    limits: Mapping[str, Limit]
    fixed: Mapping[str, str] = field(default_factory=dict)
    forbidden: tuple[tuple[str, str], ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    goal: Goal = field(default_factory=Goal)
    interactions: Interactions | None = None

    @cached_property
    def group_index(self) -> Mapping[str, int]:
        """Position of every group by name."""
        return {name: position for position, name in enumerate(self.groups)}

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of all resources, additive ones first."""
        return (*self.costs, *self.peaks)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Problem:
        """Read a problem from the JSON form that files and the service use.

        Args:
            document: The parsed document, version 1.

        Returns:
            The checked problem.

        Raises:
            ProblemError: If anything in the document is wrong; names the path of the value.
        """
        from mpsearch_solvers.document import parse

        return parse(document)

    @classmethod
    def from_arrays(
        cls,
        loss: ArrayLike,
        costs: Mapping[str, ArrayLike] | None = None,
        limits: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = None,
        options: Sequence[str] | Sequence[Sequence[str]] | None = None,
        allowed: ArrayLike | None = None,
        *,
        rows: Mapping[str, ArrayLike | PeakRows] | None = None,
        fixed: Mapping[str, str] | None = None,
        forbidden: Sequence[tuple[str, str]] = (),
        ties: Sequence[Sequence[str]] = (),
        goal: Goal | Mapping[str, Any] | None = None,
        interactions: Interactions | None = None,
    ) -> Problem:
        """Build a problem from arrays of shape (groups, options).

        Args:
            loss: Loss of every option of every group.
            costs: What every option spends, by resource.
            limits: Largest usage per resource, or `{"min": …, "max": …}`.
            names: Group names; default `"0"`, `"1"` …
            options: Names of the columns, shared by all groups or one list per group.
            allowed: True where a group offers the option; default everywhere.
            rows: Peak resources: arrays of shape (steps, groups, options).
            fixed: Groups whose option is given.
            forbidden: (group, option) pairs that may not be chosen.
            ties: Sets of groups that take an option of the same name.
            goal: What to minimise; default the loss.
            interactions: Extra loss of pairs of choices.

        Returns:
            The checked problem.

        Raises:
            ProblemError: If shapes, values or names do not fit; names the path of the value.
        """
        from mpsearch_solvers.arrays import build

        return build(
            loss=loss,
            costs=costs or {},
            limits=limits or {},
            names=names,
            options=options,
            allowed=allowed,
            rows=rows or {},
            fixed=fixed or {},
            forbidden=forbidden,
            ties=ties,
            goal=goal,
            interactions=interactions,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the problem in the JSON form that :meth:`from_dict` reads."""
        from mpsearch_solvers.document import write

        return write(self)

    def with_limits(self, **limits: float | Limit) -> Problem:
        """Return the same problem under other limits for the resources named.

        Args:
            **limits: New largest usage, or a whole Limit, by resource.

        Returns:
            The problem with those limits replaced or added.

        Raises:
            ProblemError: If a resource is unknown or not priced for every option.
        """
        from mpsearch_solvers.validation import check, read_limits

        problem = replace(self, limits={**self.limits, **read_limits(limits)})
        check(problem)
        return problem
