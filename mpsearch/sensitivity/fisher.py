"""The trace of the Gauss-Newton matrix by drawn gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from mpsearch.errors import ModelError
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.sensitivity.norm_passes import norm_passes
from mpsearch.sensitivity.output_curvature import (
    Draw,
    class_axis,
    complete_factors,
    draw_factor,
    draw_generator,
)
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.second_order import trace_scores
from mpsearch.sensitivity.shard_files import Arrays
from mpsearch.sensitivity.shard_payload import ShardContext
from mpsearch.sensitivity.shard_plan import batches_of, cells, forward_flops, some_batches
from mpsearch.sensitivity.sharding import Work, run_shards

__all__ = ["GgnTrace"]

PER_DRAW = 3.0
"""Cost of one draw in forward passes."""

FEWEST = 4
"""Draws that are worth a shard of their own: they share the forward pass."""


class GgnTrace(Estimator):
    """mean-trace(G_i) * ||Q(W_i) - W_i||² with G_i the layer's generalised Gauss-Newton matrix.

    G_i = mean_n J_nᵀ H_n J_n, with J_n the Jacobian of the output in the weight and H_n the loss's
    second derivative in the output. Each backward pass draws v_n with E[v_n v_nᵀ] = H_n and adds up
    ||J_nᵀ v_n||², the squared norm of one input's gradient, which is unbiased for the trace without
    the cross terms between inputs and between layers that a Hessian-vector probe carries.

    Source: Martens 2020, "New insights and perspectives on the natural gradient method", JMLR 21:
    for cross-entropy the matrix equals the Fisher with labels drawn from the model.
    """

    name: ClassVar[str] = "ggn_trace"
    scores_activations: ClassVar[bool] = False
    expands: ClassVar[bool] = True

    def __init__(self, draws: int | Literal["exact"] = 4, draw: Draw = "signs") -> None:
        """Choose the draws.

        Args:
            draws: Backward passes, at least 2 so that a standard error exists; `exact` takes one
                for every class and has no randomness.
            draw: `signs` or `labels`, see `draw_factor`.

        Raises:
            ValueError: Fewer than 2 draws, or an unknown kind.
        """
        if draws != "exact" and (not isinstance(draws, int) or draws < 2):
            raise ValueError(f"draws must be at least 2 or 'exact', not {draws!r}")
        if draw not in {"signs", "labels"}:
            raise ValueError(f"draw is 'signs' or 'labels', not {draw!r}")
        self._draws = draws
        self._draw = draw

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores with standard errors over the draws; `statistics` holds `ggn_trace` and
            `ggn_trace_stderr` of every layer.

        Raises:
            ModelError: The output or a gradient is not finite.
        """
        class_axis(task.loss)
        draws = self._draws if isinstance(self._draws, int) else _classes(task)
        grid = cells(batches_of(task), draws, PER_DRAW * forward_flops(task), finest=FEWEST)
        exact = self._draws == "exact"
        shards = [_Draws(cell.batches, cell.columns, self._draw, exact) for cell in grid]
        settings = {"seed": task.seed, "layers": [layer.name for layer in task.layers]}
        steps = [cell.steps for cell in grid]
        work = Work(_norms_of_draws, shards, steps, "gradients of drawn losses", settings)
        samples = np.zeros((draws, len(task.layers)))
        for cell, found in zip(grid, run_shards(task, work), strict=True):
            for norms in found["norms"]:
                samples[cell.columns.start : cell.columns.stop] += norms / len(task.data)
        if not np.isfinite(samples).all():
            raise ModelError(f"the output or a gradient of {task.loss.name} is nan or infinite")
        if exact:
            nothing = np.zeros(len(task.layers))
            return trace_scores(task, "ggn_trace", samples.sum(axis=0), nothing)
        stderr = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
        return trace_scores(task, "ggn_trace", samples.mean(axis=0), stderr)


@dataclass(frozen=True)
class _Draws:
    """A shard: some draws on some batches.

    Attributes:
        batches: Numbers of the batches.
        draws: Numbers of the draws, or of the classes.
        kind: How factors are drawn.
        exact: Whether there is one factor for every class instead.
    """

    batches: range
    draws: range
    kind: Draw
    exact: bool


def _norms_of_draws(context: ShardContext, shard: _Draws, step: Callable[[int], None]) -> Arrays:
    """Add up squared norms over the inputs of every batch: `[batches, draws, layers]`."""
    task = context.task
    rows = {layer.name: row for row, layer in enumerate(task.layers)}
    found = np.zeros((len(shard.batches), len(shard.draws), len(rows)))
    data = some_batches(task, shard.batches)
    done = 0
    with norm_passes(task) as passes:
        for place, (batch, (inputs, _)) in enumerate(zip(shard.batches, data, strict=True)):
            output = passes.forward(inputs)
            factors = complete_factors(output, task.loss) if shard.exact else []
            for position, draw in enumerate(shard.draws):
                generator = draw_generator(task.seed, draw, batch)
                vector = (
                    factors[draw]()
                    if shard.exact
                    else draw_factor(output, task.loss, generator, shard.kind)
                )
                more = position < len(shard.draws) - 1
                for layer, norms in passes.backward(output, vector, more):
                    found[place, position, rows[layer]] += float(norms.sum())
                done += 1
                if done < found.shape[0] * found.shape[1]:
                    step(done)
    return {"norms": found}


def _classes(task: ScoringTask) -> int:
    """Count the factors of one output."""
    with torch.no_grad(), evaluation_mode(task.model):
        output = forward(task.model, task.data.inputs[:1])
    return len(complete_factors(output, task.loss))
