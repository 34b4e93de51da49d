"""The Lagrangian dual of a scaled knapsack, and its maximisation by cutting planes.

For multipliers `m >= 0` the relaxed problem separates by group:
`L(m) = sum_g min_o (loss[g,o] + sum_k m_k cost_k[g,o]) - m . limit`, a lower bound on the optimum.
L is concave and piecewise linear in as many variables as there are rows, so Kelley's cutting
planes (J. SIAM 8, 1960) inside a box that moves with the best point need few evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import highspy
import numpy as np

from mpsearch_solvers.hull import hull_moves
from mpsearch_solvers.method import Run
from mpsearch_solvers.problem import Bools, Floats, Ints

_ROUNDS = 400
_CLOSED = 1e-12
_STALLED = 25


@dataclass(frozen=True, eq=False)
class Knapsack:
    """A multiple-choice knapsack in scaled units.

    Attributes:
        loss: Shape (groups, options); `inf` where an option is not allowed.
        cost: Shape (rows, groups, options).
        limit: Shape (rows,).
    """

    loss: Floats
    cost: Floats
    limit: Floats

    @property
    def allowed(self) -> Bools:
        """Which columns are options."""
        return np.isfinite(self.loss)

    def usage(self, indices: Ints) -> Floats:
        """Return what a choice spends, shape (rows,)."""
        spent: Floats = self.cost[:, np.arange(len(indices)), indices].sum(axis=1)
        return spent

    def total(self, indices: Ints) -> float:
        """Return what a choice loses."""
        return float(self.loss[np.arange(len(indices)), indices].sum())

    def reduced(self, multipliers: Floats) -> Floats:
        """Return every option's loss with its costs priced in, shape (groups, options)."""
        priced: Floats = self.loss + np.tensordot(multipliers, self.cost, axes=1)
        return priced


@dataclass(frozen=True, eq=False)
class DualPoint:
    """The dual at one vector of multipliers.

    Attributes:
        multipliers: Shape (rows,), not negative.
        value: L(multipliers), a lower bound in scaled units.
        slope: A supergradient: usage of the minimising choice minus the limits.
        indices: The minimising choice.
        mixture: Choices whose convex combination solves the linear relaxation, with weights, or
            empty where it was not found.
    """

    multipliers: Floats
    value: float
    slope: Floats
    indices: Ints
    mixture: tuple[tuple[float, Ints], ...] = ()


class Dual:
    """Evaluates L on arrays laid out for speed: options outermost, groups contiguous."""

    def __init__(self, knapsack: Knapsack) -> None:
        """Copy the arrays into the layout that evaluation reads.

        Args:
            knapsack: The problem.
        """
        self.knapsack = knapsack
        rows, groups, width = knapsack.cost.shape
        self._loss = np.ascontiguousarray(knapsack.loss.T)
        self._cost = np.ascontiguousarray(knapsack.cost.transpose(0, 2, 1))
        self._flat = self._cost.reshape(rows, width * groups)
        self._groups = np.arange(groups)

    def evaluate(self, multipliers: Floats) -> DualPoint:
        """Return the dual at some multipliers."""
        width, groups = self._loss.shape
        priced = (multipliers @ self._flat).reshape(width, groups)
        priced += self._loss
        if width > groups:
            indices = priced.argmin(axis=0)
            least = priced[indices, self._groups]
        else:
            least = priced[0].copy()
            indices = np.zeros(groups, dtype=np.intp)
            for column in range(1, width):
                better = priced[column] < least
                indices[better] = column
                np.minimum(least, priced[column], out=least)
        usage = self._cost[:, indices, self._groups].sum(axis=1)
        value = float(least.sum() - multipliers @ self.knapsack.limit)
        return DualPoint(multipliers, value, usage - self.knapsack.limit, indices)


def maximise(
    knapsack: Knapsack,
    run: Run,
    start: Floats | None,
    ceiling: float,
    reach: float = 4.0,
) -> tuple[DualPoint, list[DualPoint]]:
    """Maximise the dual.

    Args:
        knapsack: The problem; at least one row.
        run: Terms of the solve; ends early with its time limit.
        start: Multipliers to start from, or None.
        ceiling: A dual value above this ends the search: it proves what the caller wants.
        reach: Half-width of the first box, as a part of the multipliers it starts from.

    Returns:
        The best point, and all points visited.
    """
    if len(knapsack.limit) == 1:
        point = _single_row(knapsack)
        return point, [point]
    guess = _first_guess(knapsack, start)
    return _cutting_planes(Dual(knapsack), run, guess, ceiling, reach * guess)


def _single_row(knapsack: Knapsack) -> DualPoint:
    """Return the exact best point of a single row: the slope at which the limit falls.

    Its choice is the longest prefix of the hull's moves that keeps the limit.
    """
    moves = hull_moves(knapsack.loss, knapsack.cost[0], knapsack.allowed)
    indices = moves.start.copy()
    usage = knapsack.usage(indices)[0] + np.cumsum(moves.cost)
    place = int(np.searchsorted(usage, knapsack.limit[0], side="right"))
    # Moves of one group come in order, so the last write wins, as it should.
    indices[moves.group[:place]] = moves.column[:place]
    price, mixture = 0.0, [(1.0, indices)]
    if place < len(moves.cost):
        price = float(moves.saved[place] / moves.cost[place])
        beyond = indices.copy()
        beyond[moves.group[place]] = moves.column[place]
        part = float((knapsack.limit[0] - knapsack.usage(indices)[0]) / moves.cost[place])
        mixture = [(1.0 - part, indices), (part, beyond)]
    multipliers = np.array([price])
    least = knapsack.reduced(multipliers).min(axis=1)
    value = float(least.sum() - price * knapsack.limit[0])
    slope = knapsack.usage(indices) - knapsack.limit
    return DualPoint(multipliers, value, slope, indices, tuple(mixture))


def _first_guess(knapsack: Knapsack, start: Floats | None) -> Floats:
    loss = float(knapsack.loss[knapsack.allowed].mean())
    cost = np.array([float(row[knapsack.allowed].mean()) for row in knapsack.cost])
    typical = loss / np.where(cost > 0, cost, 1.0)
    typical = np.where(typical > 0, typical, 1.0)
    if start is None:
        return typical
    # A neighbour's zero would shut the box; a little of the typical price keeps it open.
    guess: Floats = np.maximum(start, 1e-3 * typical)
    return guess


def _cutting_planes(
    dual: Dual, run: Run, guess: Floats, ceiling: float, radius: Floats
) -> tuple[DualPoint, list[DualPoint]]:
    best = dual.evaluate(guess)
    visited = [best]
    master = _Master()
    unit = max(1e-9, abs(best.value))
    stalled = 0
    for _ in range(_ROUNDS):
        multipliers, promise = master.solve(visited, best, radius, unit)
        move = np.abs(multipliers - best.multipliers)
        is_low = (multipliers > 0.0) & (multipliers < best.multipliers)
        at_edge = bool(
            (move >= radius * (1 - 1e-6))[is_low | (multipliers > best.multipliers)].any()
        )
        gain = promise - best.value
        closed = gain <= _CLOSED * max(abs(best.value), 1e-6)
        if (closed and not at_edge) or stalled >= _STALLED or run.is_over:
            break
        point = dual.evaluate(multipliers)
        visited.append(point)
        if at_edge:
            radius = 2.0 * radius
        else:
            # The master's tolerances are absolute, so its box and its unit follow the search.
            radius = np.minimum(radius, np.maximum(8.0 * move.max() / radius.max(), 0.1) * radius)
            unit = max(gain, 1e-15 * max(abs(best.value), 1e-6))
        if point.value > best.value:
            small = point.value - best.value <= 1e-3 * gain
            stalled = stalled + 1 if small and not at_edge else 0
            best = point
            if best.value > ceiling:
                return best, visited
        else:
            stalled += 1
    mixture = tuple(
        (weight, visited[place].indices)
        for place, weight in enumerate(master.weights(len(visited)).tolist())
        if weight > 1e-9
    )
    return replace(best, mixture=mixture), visited


class _Master:
    """The linear program over all cuts: maximise t with t <= every cut, in a box."""

    def __init__(self) -> None:
        self._program = highspy.Highs()  # type: ignore[no-untyped-call]
        self._program.setOptionValue("output_flag", False)

    def solve(
        self, points: list[DualPoint], centre: DualPoint, radius: Floats, unit: float
    ) -> tuple[Floats, float]:
        """Return the best multipliers in a box around the centre, and the value promised there.

        Values are measured from the centre's in the given unit, multipliers in box widths.
        """
        rows = len(radius)
        slopes = np.array([point.slope for point in points])
        origins = np.array([point.multipliers for point in points])
        values = np.array([point.value for point in points])
        least = (
            values - centre.value + (slopes * (centre.multipliers - origins)).sum(axis=1)
        ) / unit
        low = np.maximum(-1.0, -centre.multipliers / radius)
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = rows + 1, len(points)
        program.col_cost_ = np.append(np.zeros(rows), -1.0)
        program.col_lower_ = np.append(low, -highspy.kHighsInf)
        program.col_upper_ = np.append(np.ones(rows), highspy.kHighsInf)
        program.row_lower_ = np.full(len(points), -highspy.kHighsInf)
        program.row_upper_ = least
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = np.arange(len(points) + 1) * (rows + 1)
        program.a_matrix_.index_ = np.tile(np.arange(rows + 1), len(points))
        steps = -slopes * radius / unit
        program.a_matrix_.value_ = np.append(steps, np.ones((len(points), 1)), axis=1).ravel()
        self._program.passModel(program)
        self._program.run()
        solution = np.array(self._program.getSolution().col_value)
        multipliers: Floats = np.maximum(centre.multipliers + radius * solution[:-1], 0.0)
        return multipliers, centre.value + unit * float(solution[-1])

    def weights(self, count: int) -> Floats:
        """Return the weight of every cut in the relaxation's solution, from the last duals."""
        duals = -np.array(self._program.getSolution().row_dual)
        weights: Floats = np.zeros(count)
        weights[: len(duals)] = duals.clip(0.0, 1.0)
        return weights
