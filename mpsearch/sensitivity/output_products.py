"""Inner products of output gradients with output errors: the terms of Taylor expansions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.sensitivity.output_curvature import Draw, complete_factors, draw_factor
from mpsearch.sensitivity.output_error import output_errors
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.taps import Call, frozen, refuse_rows, tapped

__all__ = ["OutputProducts", "output_products"]


@dataclass(frozen=True)
class OutputProducts:
    """What options do to the loss and to its curvature factors, to first order in the layer.

    Attributes:
        slopes: <∂l_n/∂Y_i, Y_i,q - Y_i> of every input n's own loss, inputs x layers x options;
            None where the loss was not differentiated.
        factors: <J_nᵀ v_n, Y_i,q - Y_i> for every draw of v_n with E[v_n v_nᵀ] = ∂²l/∂output²,
            draws x inputs x layers x options.
        complete: Whether the draws are all factors of the second derivative, to be added up, and
            not random ones, to be averaged.
        float_loss: Loss of the unquantized model where it was differentiated.
    """

    slopes: NDArray[np.float64] | None
    factors: NDArray[np.float64]
    complete: bool
    float_loss: float | None

    def second_order(self) -> NDArray[np.float64]:
        """Compute Δᵀ G Δ with the Gauss-Newton matrix G, averaged over inputs, draw by draw.

        Returns:
            draws x layers x options; a single row where the factors are complete.
        """
        each: NDArray[np.float64] = np.square(self.factors).mean(axis=1)
        return each.sum(axis=0, keepdims=True) if self.complete else each


def output_products(
    task: ScoringTask, draws: int | str, draw: Draw, *, slopes: bool
) -> OutputProducts:
    """Multiply output errors of all layers and options with gradients as these arrive.

    Args:
        task: Model, layers, options, data.
        draws: Backward passes for the curvature, or `exact` for one per class.
        draw: How factors are drawn.
        slopes: Whether to differentiate the loss itself, too.

    Returns:
        The products.
    """
    generator = torch.Generator().manual_seed(task.seed)
    parts: list[NDArray[np.float64]] = []
    losses: list[float] = []
    total = math.ceil(len(task.data) / task.data.batch_size)
    collector = _Products(task)
    with frozen(task.model), evaluation_mode(task.model), tapped(task, collector) as taps:
        for number, (inputs, target) in enumerate(task.data.batches(), 1):
            taps.restart()
            output = forward(task.model, inputs)
            vectors = _vectors(output, task, generator, draws, draw)
            if slopes:
                loss, slope = _slope(task, output, target)
                losses.append(loss * len(inputs) / len(task.data))
                vectors.insert(0, lambda slope=slope: slope)  # type: ignore[misc]
            collector.start(len(inputs), len(vectors))
            for position, vector in enumerate(vectors):
                collector.last = position == len(vectors) - 1
                if output.requires_grad:
                    torch.autograd.grad(
                        output,
                        taps.leaves,
                        vector(),
                        retain_graph=not collector.last,
                        allow_unused=True,
                    )
            parts.append(collector.products)
            task.on_progress(Progress("profile", number, total, "output gradients"))
    found = np.concatenate(parts, axis=1)
    return OutputProducts(
        slopes=found[0] if slopes else None,
        factors=found[1:] if slopes else found,
        complete=draws == "exact",
        float_loss=math.fsum(losses) if slopes else None,
    )


def _vectors(
    output: Tensor,
    task: ScoringTask,
    generator: torch.Generator,
    draws: int | str,
    draw: Draw,
) -> list[Callable[[], Tensor]]:
    if isinstance(draws, str):
        return complete_factors(output, task.loss)
    return [lambda: draw_factor(output, task.loss, generator, draw)] * draws


def _slope(task: ScoringTask, output: Tensor, target: Tensor | None) -> tuple[float, Tensor]:
    """Differentiate every input's own loss in the output, apart from the model's graph."""
    leaf = output.detach().requires_grad_()
    loss = task.loss(leaf, target)
    (slope,) = torch.autograd.grad(len(leaf) * loss, [leaf])
    return float(loss.detach()), slope


class _Products:
    """Products of one batch: vectors x inputs x layers x options."""

    def __init__(self, task: ScoringTask) -> None:
        self.products: NDArray[np.float64] = np.zeros((0, 0, 0, 0))
        self.last = False
        self._task = task
        self._rows = {layer.name: row for row, layer in enumerate(task.layers)}
        self._kept: dict[tuple[str, int], list[Tensor]] = {}

    def start(self, batch: int, vectors: int) -> None:
        self.products = np.zeros((vectors, batch, len(self._rows), len(self._task.options)))

    def __call__(self, call: Call, gradient: Tensor) -> None:
        key = call.use, call.number
        self._kept.setdefault(key, []).append(gradient.detach())
        if not self.last:
            return
        gradients: Sequence[Tensor] = self._kept.pop(key)
        row, batch = self._rows[call.layer], self.products.shape[1]
        refuse_rows(call, batch, len(gradient))
        for column, error in enumerate(output_errors(self._task, call)):
            if error is None:
                continue
            for vector, slope in enumerate(gradients):
                dots = (error * slope).reshape(batch, -1).sum(dim=1, dtype=torch.float64)
                self.products[vector, :, row, column] += dots.cpu().numpy()
        call.release()
