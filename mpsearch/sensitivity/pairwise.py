"""Losses of pairs: what two layers cost together beyond what each costs alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.menu import Menu
from mpsearch.sensitivity.measured import single_layer_increases
from mpsearch.sensitivity.output_pairs import pairs_of_outputs
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.shards import measure_choices
from mpsearch.sensitivity.single_outputs import offered_places, outputs_fit

__all__ = ["Pairwise", "grouped_interactions", "projected"]

Terms = Literal["outputs", "measured"]


class Pairwise(Estimator):
    """Loss of an allocation x as ½ xᵀGx: option losses ½ G_ii, interaction losses G_ij per pair.

    `terms="measured"`: G_ii = 2(L(w + Δ_i) - L(w)) and G_ij = ΔL_ij - ΔL_i - ΔL_j, each pair of
    layers and options measured, projected to the nearest positive semidefinite matrix.
    `terms="outputs"`: only single choices are run, and their change of the model's output δ_i kept.
    To second order the pair's loss is mean_n δ_iᵀ H_n δ_j with H_n the loss's second derivative in
    the output; here each δ_i is scaled so that its own term equals the measured increase, which
    keeps the matrix positive semidefinite without a projection and saturates where the loss does.

    The pairs of fine formats are mostly an accident of the inputs at hand, and a solver that may
    choose among thousands of them collects the luckiest. `shrink="inputs"` multiplies the pairs of
    every two options with the part of their squares that is not sampling error over the inputs:
    1 - Σ se² / Σ mean² over all pairs of layers, the linear shrinkage of least expected squared
    error.

    Source: CLADO (Deng et al. 2023, arXiv 2307.05657); `outputs` is its quadratic form with the
    Gauss-Newton matrix in place of measured pairs. The shrinkage follows Ledoit and Wolf 2004, "A
    well-conditioned estimator for large-dimensional covariance matrices", block by block.
    """

    name: ClassVar[str] = "pairwise"
    scores_activations: ClassVar[bool] = True

    def __init__(
        self, terms: Terms = "outputs", project: bool = True, shrink: float | str = "inputs"
    ) -> None:
        """Choose where pairs come from.

        Args:
            terms: `outputs` or `measured`.
            project: Whether measured pairs are projected.
            shrink: What pairs of `outputs` are multiplied with: a number, 1 to keep them and 0 to
                leave them out, or `inputs`.

        Raises:
            ValueError: Unknown terms, or a factor outside 0 to 1.
        """
        if terms not in {"outputs", "measured"}:
            raise ValueError(f"terms is 'outputs' or 'measured', not {terms!r}")
        if shrink != "inputs" and not (isinstance(shrink, int | float) and 0 <= shrink <= 1):
            raise ValueError(f"shrink is 'inputs' or a factor from 0 to 1, not {shrink!r}")
        self._terms = terms
        self._project = project
        self._shrink = shrink

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option, and every pair of them; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores with interactions; nothing is random, so the standard errors are 0.
        """
        if self._terms == "outputs":
            (found,) = pairs_of_outputs(task, self._shrink)
            return _scores(task, found.matrix, found.float_loss, found.warnings)
        matrix, float_loss = _measured(task)
        return _scores(task, projected(matrix) if self._project else matrix, float_loss)

    def score_parts(self, task: ScoringTask, parts: Sequence[NDArray[np.int64]]) -> list[Scores]:
        """Score from parts of the inputs; one measurement serves all where the outputs fit.

        Args:
            task: As in `score`.
            parts: Positions of inputs.

        Returns:
            Scores from every part.
        """
        if self._terms != "outputs" or not outputs_fit(task):
            return super().score_parts(task, parts)
        return [
            _scores(task, found.matrix, found.float_loss, found.warnings)
            for found in pairs_of_outputs(task, self._shrink, parts)
        ]


def _scores(
    task: ScoringTask,
    matrix: NDArray[np.float64],
    float_loss: float,
    warnings: tuple[str, ...] = (),
) -> Scores:
    shape = len(task.layers), len(task.options)
    matrix = (matrix + matrix.T) / 2  # the same bits on both sides of the diagonal
    loss = (matrix.diagonal() / 2).reshape(shape)
    pairs = matrix.reshape(*shape, *shape).copy()
    for row in range(shape[0]):
        pairs[row, :, row, :] = 0  # a layer takes one option, so these never meet
    return Scores(
        loss.copy(),
        np.zeros(shape),
        warnings=warnings,
        float_loss=float_loss,
        interactions=pairs.reshape(matrix.shape),
    )


def projected(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the nearest positive semidefinite matrix in the Frobenius norm.

    Args:
        matrix: Symmetric.

    Returns:
        The matrix with its negative eigenvalues set to 0.
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    found: NDArray[np.float64] = (vectors * np.maximum(values, 0)) @ vectors.T
    return (found + found.T) / 2


def _measured(task: ScoringTask) -> tuple[NDArray[np.float64], float]:
    single, float_loss = single_layer_increases(task, task.loss)
    width = len(task.options)
    pairs = [(a, b) for a, b in itertools.combinations(offered_places(task), 2) if a[0] != b[0]]
    choices = [
        {task.layers[row].name: task.options[column] for row, column in pair} for pair in pairs
    ]
    measured = measure_choices(task, choices, task.loss, f"{task.loss.name} of pairs")
    matrix = np.diag(2 * single.ravel())
    for (a, b), value in zip(pairs, measured, strict=True):
        i, j = a[0] * width + a[1], b[0] * width + b[1]
        matrix[i, j] = matrix[j, i] = value - float_loss - single[a] - single[b]
    return matrix, float_loss


def grouped_interactions(
    scores: Scores, task: ScoringTask, menu: Menu
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Add up interactions of layers to those of groups.

    Args:
        scores: Scores of layers.
        task: What was scored.
        menu: The groups.

    Returns:
        What interactions inside groups add to the groups' losses, groups x options, and the
        interactions between groups, (groups x options) squared; None where there are none.
    """
    if scores.interactions is None:
        return None
    width = len(task.options)
    pairs = scores.interactions.reshape(len(task.layers), width, len(task.layers), width)
    rows = {layer.name: row for row, layer in enumerate(task.layers)}
    member = np.zeros((len(menu.groups), len(task.layers)))
    for group, layers in enumerate(menu.groups.values()):
        member[group, [rows[layer] for layer in layers]] = 1
    between = np.einsum("gl,hm,lamb->gahb", member, member, pairs)
    inside = np.zeros((len(menu.groups), width))
    for group in range(len(menu.groups)):
        inside[group] = between[group, :, group, :].diagonal() / 2
        between[group, :, group, :] = 0
    square = between.reshape(len(menu.groups) * width, -1)
    return inside, (square + square.T) / 2
