"""How the output changes of single choices add up: the pairs of a quadratic form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import InputError, ModelError
from mpsearch.losses import Loss
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.sensitivity.measured import divergence, offered_places
from mpsearch.sensitivity.output_curvature import class_axis
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shards import measure_outputs

__all__ = ["OutputPairs", "pairs_of_outputs", "reliability"]

OUTPUT_MEMORY = 2**30
"""Bytes of outputs that are kept where the task sets no limit."""


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


def pairs_of_outputs(task: ScoringTask, shrink: float | str) -> OutputPairs:
    """Run every single choice once; pair the changes that they make in the output.

    Args:
        task: Model, layers, options, data.
        shrink: Factor of all pairs, or `inputs`: 1 - Σ se² / Σ mean² of every two options.

    Returns:
        The quadratic form.

    Raises:
        ModelError: An output is NaN or infinite.
    """
    loss = _expanded_loss(task)
    places, width = offered_places(task), len(task.options)
    kept, warnings = _inputs_kept(task, len(places) + 1)
    choices = [{task.layers[row].name: task.options[column]} for row, column in places]
    found = measure_outputs(
        task, [{}, *choices], loss, f"{loss.name} and outputs of single layers", kept
    )
    if not np.isfinite(found.outputs).all():
        raise ModelError("the model's output is nan or infinite on this data")
    increase = found.losses[1:] - found.losses[0]
    mean, square = _moments(torch.from_numpy(found.outputs), loss)
    own = mean.diagonal()
    # A choice that helps has no length in the output; it keeps its loss and no interactions.
    scale = np.sqrt(
        np.divide(2 * np.maximum(increase, 0), own, out=np.zeros_like(own), where=own > 0)
    )
    both = np.outer(scale, scale)
    mean, square = mean * both, square * both**2
    columns = np.array([column for _, column in places])
    rows = np.array([row for row, _ in places])
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


def _inputs_kept(task: ScoringTask, choices: int) -> tuple[int, tuple[str, ...]]:
    """Decide how many inputs' outputs fit into memory."""
    with torch.no_grad(), evaluation_mode(task.model):
        output = forward(task.model, task.data.inputs[:1])
    limit = OUTPUT_MEMORY if task.memory_limit is None else task.memory_limit // 2
    fitting = limit // (4 * output.numel() * choices)
    total = len(task.data)
    if fitting >= total:
        return total, ()
    kept = max(1, fitting)
    return kept, (
        f"pairs are computed from the first {kept} of {total} inputs, whose outputs fit into "
        f"{limit / 2**20:.0f} MiB; the losses of single choices are from all",
    )


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
