"""Losses of pairs: what two layers cost together beyond what each costs alone."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.engine.meter import AllocationMeter
from mpsearch.errors import InputError, ModelError
from mpsearch.losses import Loss
from mpsearch.menu import Menu
from mpsearch.progress import Progress
from mpsearch.sensitivity.measured import divergence, single_layer_increases
from mpsearch.sensitivity.output_curvature import class_axis
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.shards import measure_choices

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

    Source: CLADO (Deng et al. 2023, arXiv 2307.05657); `outputs` is its quadratic form with the
    Gauss-Newton matrix in place of measured pairs.
    """

    name: ClassVar[str] = "pairwise"
    scores_activations: ClassVar[bool] = True

    def __init__(self, terms: Terms = "outputs", project: bool = True) -> None:
        """Choose where pairs come from.

        Args:
            terms: `outputs` or `measured`.
            project: Whether measured pairs are projected.

        Raises:
            ValueError: Unknown terms.
        """
        if terms not in {"outputs", "measured"}:
            raise ValueError(f"terms is 'outputs' or 'measured', not {terms!r}")
        self._terms = terms
        self._project = project

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option, and every pair of them; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores with interactions; nothing is random, so the standard errors are 0.
        """
        shape = len(task.layers), len(task.options)
        if self._terms == "outputs":
            matrix, float_loss = _from_outputs(task)
        else:
            matrix, float_loss = _measured(task)
            matrix = projected(matrix) if self._project else matrix
        matrix = (matrix + matrix.T) / 2  # the same bits on both sides of the diagonal
        loss = (matrix.diagonal() / 2).reshape(shape)
        pairs = matrix.reshape(*shape, *shape).copy()
        for row in range(shape[0]):
            pairs[row, :, row, :] = 0  # a layer takes one option, so these never meet
        return Scores(
            loss.copy(),
            np.zeros(shape),
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


def _places(task: ScoringTask) -> list[tuple[int, int]]:
    return [
        (row, column)
        for row in range(len(task.layers))
        for column, option in enumerate(task.options)
        if not option.is_float
    ]


def _measured(task: ScoringTask) -> tuple[NDArray[np.float64], float]:
    single, float_loss = single_layer_increases(task, task.loss)
    width = len(task.options)
    pairs = [(a, b) for a, b in itertools.combinations(_places(task), 2) if a[0] != b[0]]
    choices = [
        {task.layers[row].name: task.options[column] for row, column in pair} for pair in pairs
    ]
    measured = measure_choices(task, choices, task.loss, f"{task.loss.name} of pairs")
    matrix = np.diag(2 * single.ravel())
    for (a, b), value in zip(pairs, measured, strict=True):
        i, j = a[0] * width + a[1], b[0] * width + b[1]
        matrix[i, j] = matrix[j, i] = value - float_loss - single[a] - single[b]
    return matrix, float_loss


def _from_outputs(task: ScoringTask) -> tuple[NDArray[np.float64], float | None]:
    loss = task.loss
    try:
        class_axis(loss)
    except InputError:
        loss = divergence(task)
    places, width = _places(task), len(task.options)
    products = _OutputProducts(loss, len(places) + 1)
    meter = AllocationMeter(
        task.quantizer,
        task.data.batches(),
        Loss("outputs", products, target="float_output"),
    )
    choices = [{task.layers[r].name: task.options[c]} for r, c in places]
    total = len(places) * math.ceil(len(task.data) / task.data.batch_size)

    def step(done: int, _: int) -> None:
        task.on_progress(Progress("profile", min(done, total), total, "outputs of single choices"))

    meter.measure_many([{}, *choices], step)
    increase, float_loss = single_layer_increases(task, loss)
    gram = products.gram[1:, 1:] / len(task.data)
    if not np.isfinite(gram).all():
        raise ModelError("the model's output is nan or infinite on this data")
    own = gram.diagonal()
    # A choice that helps has no length in the output; it keeps its loss and no interactions.
    wanted = np.maximum(2 * np.array([increase[place] for place in places]), 0)
    scale = np.sqrt(np.divide(wanted, own, out=np.zeros_like(own), where=own > 0))
    scaled = gram * np.outer(scale, scale)
    matrix = np.zeros((len(task.layers) * width, len(task.layers) * width))
    index = [row * width + column for row, column in places]
    matrix[np.ix_(index, index)] = scaled
    matrix[np.diag_indices_from(matrix)] = 2 * increase.ravel()
    return matrix, float_loss


class _OutputProducts:
    """Takes the place of a loss, to see every output: Σ_n δ_iᵀ H_n δ_j over the data."""

    def __init__(self, loss: Loss, choices: int) -> None:
        self.gram: NDArray[np.float64] = np.zeros((choices, choices))
        self._loss = loss
        self._choices = choices
        self._rooted: list[Tensor] = []

    def __call__(self, output: Tensor, reference: Tensor) -> Tensor:
        self._rooted.append(_rooted(output.double() - reference.double(), reference, self._loss))
        if len(self._rooted) == self._choices:
            stacked = torch.stack(self._rooted)
            self.gram += (stacked @ stacked.T).cpu().numpy()
            self._rooted.clear()
        return output.new_zeros(())


def _rooted(change: Tensor, reference: Tensor, loss: Loss) -> Tensor:
    """Multiply with the root of the loss's second derivative, so that products are δ_iᵀ H δ_j."""
    axis = class_axis(loss)
    positions = max(1, reference[0].numel() // (1 if axis is None else reference.shape[axis]))
    if axis is None:
        return change.flatten() * math.sqrt(2 / positions)
    p = torch.softmax(reference.double(), dim=axis)
    centred = change - (p * change).sum(dim=axis, keepdim=True)
    return (p.sqrt() * centred).flatten() / math.sqrt(positions)


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
