"""Lower convex hulls of every group's (cost, loss) points, all groups at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch_solvers.problem import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class HullMoves:
    """The steps from every group's cheapest option along its hull, steepest first.

    Applying any prefix gives an allocation that no other with at most its cost beats.

    Attributes:
        start: Column every group starts from: least cost, then least loss; shape (groups,).
        group: Group of each move, shape (moves,).
        column: Column the group moves to.
        cost: Cost added by each move, positive.
        saved: Loss removed by each move, positive.
    """

    start: Ints
    group: Ints
    column: Ints
    cost: Floats
    saved: Floats


def hull_moves(loss: Floats, cost: Floats, allowed: Bools) -> HullMoves:
    """Walk every group's lower-left hull from its cheapest option to its least loss.

    Args:
        loss: Shape (groups, options).
        cost: Shape (groups, options).
        allowed: Options that count.

    Returns:
        The moves of all groups, by loss saved per cost added, steepest first; the moves of one
        group keep their order.
    """
    groups = np.arange(len(loss))
    losses = np.where(allowed, loss, np.inf)
    costs = np.where(allowed, cost, np.inf)
    cheapest = costs == costs.min(axis=1, keepdims=True)
    start = np.where(cheapest, losses, np.inf).argmin(axis=1)
    at = start.copy()
    active = groups
    parts: list[tuple[Ints, Ints, Floats, Floats]] = []
    while active.size:
        added = costs[active] - costs[active, at[active]][:, None]
        saved = losses[active, at[active]][:, None] - losses[active]
        useful = (added > 0.0) & (saved > 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope = np.where(useful, saved / added, -1.0)
        steepest = slope.max(axis=1)
        # Of points on one line the farthest: it leaves no point of zero length behind.
        target = np.where(slope == steepest[:, None], added, -1.0).argmax(axis=1)
        going = steepest > 0.0
        active, target = active[going], target[going]
        rows = np.flatnonzero(going)
        parts.append((active, target, added[rows, target], saved[rows, target]))
        at[active] = target
    group, column, added, saved = (np.concatenate(part) for part in zip(*parts, strict=True))
    with np.errstate(over="ignore"):
        order = np.argsort(-(saved / added), kind="stable")
    return HullMoves(start, group[order], column[order], added[order], saved[order])
