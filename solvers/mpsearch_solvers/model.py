"""The compiled problem that methods solve: one linear objective, rows `usage <= limit`, one-hot.

Ties are merged, fixed and forbidden options removed, goals turned into an objective and rows,
least usages turned into rows with negated costs, peaks into one row per schedule step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpsearch_solvers.errors import ProblemError
from mpsearch_solvers.evaluation import (
    is_within_limits,
    objective_of,
    step_usages,
    total_loss,
    usage_of,
)
from mpsearch_solvers.goal import LOSS
from mpsearch_solvers.problem import Bools, Floats, Interactions, Ints, Problem


@dataclass(frozen=True, eq=False)
class Row:
    """One constraint: the summed cost of the chosen options stays at or below the limit.

    Attributes:
        resource: The resource it comes from, or `"loss"` for the goal's `max_loss`.
        side: `"max"`, or `"min"` where cost and limit are the negated least usage.
        step: Position of the schedule step of a peak resource, else None.
        cost: Shape (groups, options); zero where an option is not allowed.
        limit: The largest sum allowed.
        epigraph: True for a step of the peak that is minimised: cost - value <= limit.
    """

    resource: str
    side: str
    step: int | None
    cost: Floats
    limit: float
    epigraph: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """What a method sees of a problem. Groups here are the problem's groups with ties merged.

    Attributes:
        problem: The problem it was compiled from; the only source of reported numbers.
        objective: What to minimise, shape (groups, options); `inf` where not allowed.
        allowed: Which columns may be chosen.
        rows: The constraints.
        interactions: Extra objective of pairs of choices, or None.
        peak: Resource whose largest step is the objective, or None. Then `objective` is zero and
            the steps are epigraph rows.
        member: Model group of every problem group, shape (problem groups,).
        column: Problem column of every model column, shape (problem groups, options).
    """

    problem: Problem
    objective: Floats
    allowed: Bools
    rows: tuple[Row, ...]
    interactions: Interactions | None
    peak: str | None
    member: Ints
    column: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """Groups and columns."""
        groups, width = self.objective.shape
        return groups, width

    def expand(self, indices: Ints) -> Ints:
        """Return the problem's columns for a choice of model columns, shape (problem groups,)."""
        chosen = indices[self.member]
        expanded: Ints = np.take_along_axis(self.column, chosen[:, None], axis=1)[:, 0]
        return expanded

    def contract(self, indices: Ints) -> Ints | None:
        """Return the model columns for a choice of problem columns; None if it has none."""
        found = (self.column == indices[:, None]) & self.allowed[self.member]
        if not found.any(axis=1).all():
            return None
        columns = found.argmax(axis=1)
        chosen = np.zeros(self.shape[0], dtype=np.intp)
        chosen[self.member] = columns
        return chosen if (chosen[self.member] == columns).all() else None

    def is_feasible(self, indices: Ints) -> bool:
        """Return whether a choice keeps every limit by exact sums of the problem's numbers."""
        return is_within_limits(self.problem, self.expand(indices))

    def value(self, indices: Ints) -> float:
        """Return the problem's objective at a choice, by exact sums of the problem's numbers.

        For a worst-loss goal this is the loss that breaks ties: methods minimise that.
        """
        expanded = self.expand(indices)
        if self.problem.goal.is_worst_loss:
            plain = replace(self.problem, goal=replace(self.problem.goal, minimize=LOSS))
            return objective_of(plain, expanded)
        return objective_of(self.problem, expanded)

    def overrun(self, indices: Ints, row: Row) -> float:
        """Return by how much a choice exceeds a row, by exact sums; negative when it does not."""
        expanded = self.expand(indices)
        if row.resource == LOSS:
            return total_loss(self.problem, expanded) - row.limit
        if row.step is not None:
            limit = self.problem.limits[row.resource].max
            assert limit is not None
            return step_usages(self.problem, row.resource, expanded)[row.step] - limit
        usage = usage_of(self.problem, row.resource, expanded)
        return usage - row.limit if row.side == "max" else -usage - row.limit

    def restricted(self, allowed: Bools) -> Model:
        """Return the model with fewer options.

        Args:
            allowed: Which columns remain, shape (groups, options).

        Returns:
            The model; a group may be left without options.
        """
        remaining = self.allowed & allowed
        return replace(
            self,
            allowed=remaining,
            objective=np.where(remaining, self.objective, np.inf),
            interactions=_possible(self.interactions, remaining),
        )


def compile_problem(problem: Problem) -> Model:
    """Compile a checked problem.

    Args:
        problem: The problem.

    Returns:
        The model that methods solve.

    Raises:
        ProblemError: If fixed, forbidden and tied options leave a group nothing to choose.
    """
    member, column, allowed = _merge_ties(problem, _menu(problem))
    weights = problem.goal.weights
    peak = next((name for name in weights if name in problem.peaks), None)
    objective = np.zeros(allowed.shape)
    for name, weight in weights.items():
        if name != peak:
            table = problem.loss if name == LOSS else problem.costs[name]
            objective += weight * sum_members(table, member, column, allowed)
    objective[~allowed] = np.inf
    pairs, tied = _map_interactions(problem, member, column, allowed)
    return Model(
        problem=problem,
        objective=objective + tied,
        allowed=allowed,
        rows=tuple(_rows(problem, member, column, allowed, peak)),
        interactions=pairs,
        peak=peak,
        member=member,
        column=column,
    )


def _menu(problem: Problem) -> Bools:
    """Return which columns fixed and forbidden options leave, shape (problem groups, options)."""
    menu = problem.allowed.copy()
    for group, option in problem.forbidden:
        place = problem.group_index[group]
        menu[place, problem.options[place].index(option)] = False
    for group, option in problem.fixed.items():
        place = problem.group_index[group]
        column = problem.options[place].index(option)
        kept = menu[place, column]
        menu[place] = False
        menu[place, column] = kept
    empty = np.flatnonzero(~menu.any(axis=1))
    if empty.size:
        name = problem.groups[empty[0]]
        raise ProblemError(
            f"groups[{empty[0]}]", f"fixed and forbidden options leave {name!r} nothing to choose"
        )
    return menu


def _merge_ties(problem: Problem, menu: Bools) -> tuple[Ints, Ints, Bools]:
    groups, width = menu.shape
    classes = _tie_classes(problem)
    if not classes:
        columns = np.broadcast_to(np.arange(width), (groups, width))
        return np.arange(groups), columns, menu
    leader = np.arange(groups)
    for members in classes:
        leader[members] = min(members)
    leaders, member = np.unique(leader, return_inverse=True)
    member = member.astype(np.intp)
    column = np.tile(np.arange(width), (groups, 1))
    allowed = menu[leaders].copy()
    for members in classes:
        shared = _shared_columns(problem, menu, members)
        place = member[members[0]]
        allowed[place] = False
        allowed[place, : len(shared)] = True
        for position, group in enumerate(members):
            column[group] = 0
            column[group, : len(shared)] = [columns[position] for columns in shared]
    return member, column, allowed


def _tie_classes(problem: Problem) -> list[list[int]]:
    """Return the connected sets of tied groups; ties that overlap join."""
    parent = list(range(len(problem.groups)))

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for tie in problem.ties:
        for name in tie[1:]:
            parent[root(problem.group_index[name])] = root(problem.group_index[tie[0]])
    classes: dict[int, list[int]] = {}
    for name in dict.fromkeys(name for tie in problem.ties for name in tie):
        group = problem.group_index[name]
        classes.setdefault(root(group), []).append(group)
    return [members for members in classes.values() if len(members) > 1]


def _shared_columns(problem: Problem, menu: Bools, members: list[int]) -> list[tuple[int, ...]]:
    """Return, per option name that all members still offer, its column in each member."""
    places = [
        {name: column for column, name in enumerate(problem.options[group]) if menu[group, column]}
        for group in members
    ]
    names = [name for name in places[0] if all(name in place for place in places)]
    if not names:
        tied = ", ".join(repr(problem.groups[group]) for group in members)
        raise ProblemError("ties", f"no option is left that all of {tied} offer")
    return [tuple(place[name] for place in places) for name in names]


def sum_members(table: Floats, member: Ints, column: Ints, allowed: Bools) -> Floats:
    """Sum a (problem groups, options) table over tied groups; zero where not allowed."""
    if len(member) == len(allowed):
        return np.where(allowed, table, 0.0)
    aligned = np.where(allowed[member], np.take_along_axis(table, column, axis=1), 0.0)
    total = np.zeros(allowed.shape)
    np.add.at(total, member, aligned)
    return total


def _rows(
    problem: Problem, member: Ints, column: Ints, allowed: Bools, peak: str | None
) -> list[Row]:
    rows = []
    for resource, limit in problem.limits.items():
        if resource in problem.peaks:
            if limit.max is not None:
                rows += _peak_rows(problem, resource, limit.max, member, column, allowed)
            continue
        cost = sum_members(problem.costs[resource], member, column, allowed)
        if limit.max is not None:
            rows.append(Row(resource, "max", None, cost, limit.max))
        if limit.min is not None:
            rows.append(Row(resource, "min", None, -cost, -limit.min))
    if problem.goal.max_loss is not None:
        loss = sum_members(problem.loss, member, column, allowed)
        rows.append(Row(LOSS, "max", None, loss, problem.goal.max_loss))
    if peak is not None:
        rows += _peak_rows(problem, peak, None, member, column, allowed)
    return rows


def _peak_rows(
    problem: Problem, resource: str, limit: float | None, member: Ints, column: Ints, allowed: Bools
) -> list[Row]:
    steps = problem.peaks[resource]
    tables = [sum_members(cost, member, column, allowed) for cost in steps.cost]
    kept = _undominated(np.stack(tables), steps.base)
    return [
        Row(
            resource,
            "max",
            step,
            tables[step],
            (0.0 if limit is None else limit) - float(steps.base[step]),
            epigraph=limit is None,
        )
        for step in kept
    ]


def _undominated(cost: Floats, base: Floats) -> list[int]:
    """Return the steps that no other step exceeds everywhere: the others can never bind."""
    flat = np.concatenate([cost.reshape(len(cost), -1), base[:, None]], axis=1)
    order = np.argsort(-flat.sum(axis=1), kind="stable")
    kept: list[int] = []
    for step in order.tolist():
        if not any((flat[step] <= flat[other]).all() for other in kept):
            kept.append(step)
    return sorted(kept)


def _map_interactions(
    problem: Problem, member: Ints, column: Ints, allowed: Bools
) -> tuple[Interactions | None, Floats]:
    """Return interactions between model groups, and what ties turn into linear objective."""
    linear = np.zeros(allowed.shape)
    pairs = problem.interactions
    if pairs is None:
        return None, linear
    loss = problem.goal.weights[LOSS] * pairs.loss
    pair, one, two = _both_columns(pairs, member, column, allowed)
    a, b = member[pairs.groups[pair, 0]], member[pairs.groups[pair, 1]]
    tied = (a == b) & (one == two)
    np.add.at(linear, (a[tied], one[tied]), loss[pair[tied]])
    apart = a != b
    if not apart.any():
        return None, linear
    width = allowed.shape[1]
    cells = np.stack([a * width + one, b * width + two])[:, apart]
    cells.sort(axis=0)
    _, first, place = np.unique(
        cells[0] * allowed.size + cells[1], return_index=True, return_inverse=True
    )
    sums = np.bincount(place, weights=loss[pair[apart]]).astype(np.float64)
    order = np.argsort(first)  # as they came
    found = cells[:, first[order]]
    groups, options = found // width, found % width
    return Interactions(groups.T, options.T, sums[order]), linear


def _possible(pairs: Interactions | None, allowed: Bools) -> Interactions | None:
    """Return the interactions of options that may still be chosen; None if there are none."""
    if pairs is None:
        return None
    left = allowed[pairs.groups, pairs.options].all(axis=1)
    if not left.any():
        return None
    return Interactions(pairs.groups[left], pairs.options[left], pairs.loss[left])


def _both_columns(
    pairs: Interactions, member: Ints, column: Ints, allowed: Bools
) -> tuple[Ints, Ints, Ints]:
    """List every combination of model columns in which both options of a pair are chosen.

    Returns:
        Position of the pair, and the column of its first and of its second group.
    """
    hits = [
        (column[groups] == options[:, None]) & allowed[member[groups]]
        for groups, options in zip(pairs.groups.T, pairs.options.T, strict=True)
    ]
    (pair, one), (other, two) = map(np.nonzero, hits)
    counts = hits[1].sum(axis=1)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    repeats = counts[pair]
    left = np.repeat(np.arange(len(pair)), repeats)
    within = np.arange(len(left)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    right = starts[pair[left]] + within
    return other[right], one[left], two[right]
