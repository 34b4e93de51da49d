"""How the output changes of single choices add up: the pairs of a quadratic form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.losses import Loss
from mpsearch.sensitivity.measured import divergence
from mpsearch.sensitivity.output_curvature import class_axis
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.single_outputs import SingleOutputs, inputs_kept, single_outputs

__all__ = ["OutputPairs", "pairs_of_outputs", "reliability"]


@dataclass(frozen=True)
class OutputPairs:
    """The quadratic form of an allocation's loss.

    Attributes:
        matrix: G, (layers x options) squared: twice the measured increases on the diagonal.
        float_loss: Loss of the unquantized model.
        warnings: What the reader should know.
    """

    matrix: NDArray[np.float64]
    float_loss: float
    warnings: tuple[str, ...]


def pairs_of_outputs(
    task: ScoringTask, shrink: float | str, parts: Sequence[NDArray[np.int64]] | None = None
) -> list[OutputPairs]:
    """Run every single choice once; pair the changes that they make in the output.

    Args:
        task: Model, layers, options, data.
        shrink: Factor of all pairs, or `inputs`: 1 - Σ se² / Σ mean² of every two options.
        parts: Positions of inputs; None: all together.

    Returns:
        The quadratic form of every part.

    Raises:
        InputError: Parts are asked for, and the outputs of all inputs do not fit into memory.
    """
    loss = _expanded_loss(task)
    total = len(task.data)
    kept, limit = inputs_kept(task)
    if parts is not None and kept < total:
        raise InputError(
            f"outputs of {kept} of {total} inputs fit into {limit / 2**20:.0f} MiB, and parts of "
            "the inputs need all; raise the memory limit"
        )
    warnings: tuple[str, ...] = ()
    if kept < total:
        warnings = (
            f"pairs are computed from the first {kept} of {total} inputs, whose outputs fit into "
            f"{limit / 2**20:.0f} MiB; the losses of single choices are from all",
        )
    found = single_outputs(task, loss, kept)
    if parts is None:
        return [_quadratic_form(found, task, shrink, warnings)]
    return [_quadratic_form(found.part(rows), task, shrink, ()) for rows in parts]


def _quadratic_form(
    found: SingleOutputs, task: ScoringTask, shrink: float | str, warnings: tuple[str, ...]
) -> OutputPairs:
    width, kept = len(task.options), found.outputs.shape[1]
    increase = found.losses[1:] - found.losses[0]
    mean, square = _moments(torch.from_numpy(found.outputs), found.loss)
    own = mean.diagonal()
    # A choice that helps has no length in the output; it keeps its loss and no interactions.
    scale = np.sqrt(
        np.divide(2 * np.maximum(increase, 0), own, out=np.zeros_like(own), where=own > 0)
    )
    both = np.outer(scale, scale)
    mean, square = mean * both, square * both**2
    columns = np.array([column for _, column in found.places])
    rows = np.array([row for row, _ in found.places])
    factor: float | NDArray[np.float64]
    if not isinstance(shrink, str):
        factor = float(shrink)
    elif kept < 2:
        factor = 1.0
        warnings = (*warnings, "one input shows no sampling error: pairs are taken as they are")
    else:
        factor = reliability(mean, square, kept, rows, columns)
    matrix = np.zeros((len(task.layers) * width, len(task.layers) * width))
    index = rows * width + columns
    matrix[np.ix_(index, index)] = factor * mean
    matrix[index, index] = 2 * increase
    return OutputPairs(matrix, float(found.losses[0]), warnings)


def reliability(
    mean: NDArray[np.float64],
    square: NDArray[np.float64],
    inputs: int,
    rows: NDArray[np.int_],
    columns: NDArray[np.int_],
) -> NDArray[np.float64]:
    """Estimate which part of the pairs' squares is not sampling error, for every two options.

    Args:
        mean: Mean of the pairs' terms over the inputs.
        square: Mean of their squares.
        inputs: How many inputs there are, at least 2.
        rows: Layer of every choice.
        columns: Option of every choice.

    Returns:
        1 - Σ se² / Σ mean², 0 to 1, in the shape of `mean`; the sums run over pairs of two layers.
    """
    error = np.maximum(square - mean**2, 0) / (inputs - 1)
    apart = rows[:, None] != rows[None, :]
    factor = np.zeros_like(mean)
    for one in np.unique(columns):
        for other in np.unique(columns):
            block = np.outer(columns == one, columns == other)
            signal = float((mean[block & apart] ** 2).sum())
            noise = float(error[block & apart].sum())
            factor[block] = max(0.0, 1 - noise / signal) if signal > 0 else 0.0
    return factor


def _expanded_loss(task: ScoringTask) -> Loss:
    """Find a loss whose second derivative in the output is known: the task's, or a divergence."""
    try:
        class_axis(task.loss)
    except InputError:
        return divergence(task)
    return task.loss


def _moments(outputs: Tensor, loss: Loss) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute mean and mean square of δ_iᵀ H_n δ_j over the inputs n."""
    count = len(outputs) - 1
    mean, square = np.zeros((count, count)), np.zeros((count, count))
    for n in range(outputs.shape[1]):
        reference = outputs[0, n : n + 1].double()
        changes = outputs[1:, n].double() - reference
        root = _rooted(changes, reference.expand_as(changes), loss)
        term = (root @ root.T).numpy()
        mean += term / outputs.shape[1]
        square += term**2 / outputs.shape[1]
    return mean, square


def _rooted(change: Tensor, reference: Tensor, loss: Loss) -> Tensor:
    """Multiply with the root of the loss's second derivative, so that products are δ_iᵀ H δ_j."""
    axis = class_axis(loss)
    positions = max(1, reference[0].numel() // (1 if axis is None else reference.shape[axis]))
    if axis is None:
        return change.flatten(1) * math.sqrt(2 / positions)
    p = torch.softmax(reference, dim=axis)
    centred = change - (p * change).sum(dim=axis, keepdim=True)
    return (p.sqrt() * centred).flatten(1) / math.sqrt(positions)
