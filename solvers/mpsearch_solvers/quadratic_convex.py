"""Making the interactions convex without changing the objective of any allocation.

A choice is 0 or 1, so `d * (x^2 - x)` is zero on it: diagonal entries may be added to the
interaction matrix and taken from the linear part. Billionnet and Elloumi, "Using a mixed integer
quadratic programming solver for the unconstrained quadratic 0-1 problem" (2007), choose the
diagonal that gives the best convex bound. Choices of one group sum to 1, so the matrix needs to be
positive semidefinite only along directions that sum to zero within every group.
"""

from __future__ import annotations

import numpy as np

from mpsearch_solvers.problem import Bools, Floats, Ints

_RANK = 20
_SWEEPS = 20
# Least weight of a diagonal entry in the descent, as a share of the mean: without it the entries
# of settled options grow without limit and drag the relaxation towards others.
_FLOOR = 0.3
# Relative room left between the least eigenvalue and zero for the rounding of eigvalsh.
_SAFETY = 1e-10


def contrasts(allowed: Bools) -> Floats:
    """Return an orthonormal basis of the directions that sum to zero within every group.

    Args:
        allowed: Which columns may be chosen, shape (groups, options).

    Returns:
        Shape (groups * options, sum over groups of (options offered - 1)).
    """
    groups, width = allowed.shape
    counts = allowed.sum(axis=1)
    basis = np.zeros((groups * width, int((counts - 1).sum())))
    at = 0
    for group, count in enumerate(counts.tolist()):
        if count < 2:
            continue
        places = group * width + np.flatnonzero(allowed[group])
        whole = np.column_stack([np.ones(count), np.eye(count)[:, 1:]])
        basis[np.ix_(places, range(at, at + count - 1))] = np.linalg.qr(whole)[0][:, 1:]
        at += count - 1
    return basis


def make_convex(matrix: Floats, diagonal: Floats, basis: Floats) -> Floats:
    """Raise (or lower) a diagonal, in proportion to itself, to the edge of convexity.

    Args:
        matrix: Symmetric interactions, zero diagonal, shape (places, places).
        diagonal: What to begin with, shape (places,).
        basis: Directions along which the sum must not curve downwards.

    Returns:
        A diagonal with which `matrix + diag(diagonal)` is positive semidefinite along `basis`.
    """
    shape = np.abs(diagonal)
    shape = shape + 1e-3 * float(shape.max(initial=0.0)) + 1e-12
    metric = np.linalg.cholesky(basis.T @ (shape[:, None] * basis))
    inside = basis.T @ (matrix @ basis + diagonal[:, None] * basis)
    half = np.linalg.solve(metric, inside)
    least, most = np.linalg.eigvalsh(_symmetric(np.linalg.solve(metric, half.T)))[[0, -1]]
    margin = _SAFETY * max(abs(float(least)), abs(float(most)))
    convex: Floats = diagonal + (margin - float(least)) * shape
    return convex


def curvature(matrix: Floats, diagonal: Floats, basis: Floats) -> float:
    """Return the largest curvature along the basis, the step length's inverse."""
    if not basis.shape[1]:
        return 1.0
    inside = basis.T @ (matrix @ basis + diagonal[:, None] * basis)
    return max(float(np.linalg.eigvalsh(_symmetric(inside))[-1]), 1e-12)


def cheapest_diagonal(
    matrix: Floats, weights: Floats, allowed: Bools, factor: Floats
) -> tuple[Floats, Floats]:
    """Return nearly the diagonal of least weighted sum that makes a matrix convex.

    The dual of this semidefinite program, solved in low rank by coordinate descent: Wang, Chang
    and Kolter, "The Mixing method" (2017).

    Args:
        matrix: Symmetric interactions, zero diagonal, shape (places, places).
        weights: Weight of every diagonal entry, positive, shape (places,).
        allowed: Which columns may be chosen, shape (groups, options).
        factor: Where to start, shape (places, rank).

    Returns:
        The diagonal, not yet convex to the last digit, and the factor to start from next time.
    """
    groups, width = allowed.shape
    # A stiff penalty on group sums stands for "only along directions that sum to zero".
    stiff = float(np.abs(matrix).sum(axis=1).mean()) or 1.0
    places = np.flatnonzero(allowed.ravel())
    whole = matrix + stiff * np.kron(np.eye(groups), np.ones((width, width)))
    whole = whole[np.ix_(places, places)]
    np.fill_diagonal(whole, 0.0)
    radius = np.sqrt(weights[places])
    spun = factor[places]
    spun *= (radius / np.linalg.norm(spun, axis=1))[:, None]
    length = np.zeros(len(places))
    for _ in range(_SWEEPS):
        for place, row in enumerate(whole):
            pull = row @ spun
            length[place] = np.sqrt(pull @ pull)
            if length[place] > 0.0:
                spun[place] = pull * (-radius[place] / length[place])
    diagonal = np.zeros(groups * width)
    diagonal[places] = length / radius - stiff
    factor = factor.copy()
    factor[places] = spun
    return diagonal, factor


def first_factor(places: int) -> Floats:
    """Return a starting factor, the same for every run: it only decides how fast bounds rise."""
    start: Floats = np.random.default_rng(0).normal(size=(places, _RANK))
    return start


def spread_weights(point: Floats) -> Floats:
    """Return how much the relaxation loses per diagonal entry at a point, kept off zero."""
    lost = (point * (1.0 - point)).ravel()
    floored: Floats = np.maximum(lost, 0.0) + _FLOOR * float(lost.mean()) + 1e-4
    return floored


def _symmetric(matrix: Floats) -> Floats:
    half: Floats = 0.5 * (matrix + matrix.T)
    return half


def flat_places(groups: Ints, width: int) -> Ints:
    """Return the flat places of all columns of some groups."""
    places: Ints = (groups[:, None] * width + np.arange(width)).ravel()
    return places
