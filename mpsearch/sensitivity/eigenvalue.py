"""Second-order sensitivity in the worst direction: each layer's largest Hessian eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.sensitivity.differentiation import differentiated, layer_weights
from mpsearch.sensitivity.hessian_products import (
    pyhessian_products,
    rademacher,
    twice_differentiable,
)
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.second_order import squared_errors
from mpsearch.sensitivity.shard_files import Arrays
from mpsearch.sensitivity.shard_payload import ShardContext
from mpsearch.sensitivity.shard_plan import batches_of, cells, forward_flops
from mpsearch.sensitivity.sharding import Work, run_shards

__all__ = ["HessianTopEigenvalue"]

Order = Literal["loss", "precision"]
Engine = Literal["mpsearch", "pyhessian"]

PER_PRODUCT = 3.0
"""Cost of a product of one layer's block in forward passes."""

FEWEST = 8
"""Layers that are worth a shard of their own: each builds the graph of every batch anew."""


class HessianTopEigenvalue(Estimator):
    """½ λ_i ||Q(W_i) - W_i||², the largest second-order loss that an error of this size can cause.

    λ_i is the largest eigenvalue of the layer's own block H_i, found by power iteration on all
    layers side by side over one graph per batch. Where the eigenvalue of largest magnitude is
    negative, a second iteration with H_i - λ I finds the largest one. `order="precision"` scores by
    λ_i / n_i · ||Q(W_i) - W_i||² instead, HAWQ's order for choosing precisions; `order="loss"` is
    its order for fine-tuning.

    Source: HAWQ (Dong et al. 2019, arXiv 1905.03696).
    """

    name: ClassVar[str] = "hessian_top_eigenvalue"
    scores_activations: ClassVar[bool] = False
    expands: ClassVar[bool] = True

    def __init__(
        self,
        iterations: int = 30,
        tolerance: float = 1e-2,
        order: Order = "loss",
        engine: Engine = "mpsearch",
    ) -> None:
        """Choose when to stop and what to score by.

        Args:
            iterations: Most steps of one power iteration.
            tolerance: Relative change of every eigenvalue at which it stops.
            order: `loss` or `precision`.
            engine: `pyhessian` multiplies by PyHessian's `dataloader_hv_product`, with all other
                layers out of its sight; slower, the reference.

        Raises:
            ValueError: Fewer than 1 iteration, a negative tolerance, an unknown order or engine.
        """
        if iterations < 1 or tolerance < 0:
            raise ValueError(
                f"iterations must be at least 1 and tolerance at least 0, "
                f"not {iterations} and {tolerance}"
            )
        if order not in {"loss", "precision"}:
            raise ValueError(f"order is 'loss' or 'precision', not {order!r}")
        self._iterations = iterations
        self._tolerance = tolerance
        if engine not in {"mpsearch", "pyhessian"}:
            raise ValueError(f"engine is 'mpsearch' or 'pyhessian', not {engine!r}")
        self._order = order
        self._engine = engine

    @property
    def held(self) -> float:
        """A graph of the gradient holds about three times what the loss's own does."""
        return 3.0

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores; standard errors are 0, the error of an iteration that did not converge is not
            one of sampling and is warned of. `statistics` holds `hessian_top_eigenvalue`.
        """
        everyone = len(task.layers)
        flops = self._iterations * batches_of(task) * PER_PRODUCT * forward_flops(task)
        grid = cells(1, everyone, flops, finest=FEWEST)
        shards = [
            _Layers(cell.columns, self._iterations, self._tolerance, self._engine) for cell in grid
        ]
        settings = {"seed": task.seed, "layers": [layer.name for layer in task.layers]}
        steps = [2 * self._iterations * cell.steps for cell in grid]
        parts = run_shards(task, Work(_eigenvalues, shards, steps, "power iteration", settings))
        largest = np.concatenate([part["largest"] for part in parts])
        settled = np.concatenate([part["settled"] for part in parts])
        sizes = np.array([layer.weights for layer in task.layers], dtype=np.float64)
        factor = largest / 2 if self._order == "loss" else largest / sizes
        names = [layer.name for layer in task.layers]
        loose = [name for name, done in zip(names, settled.tolist(), strict=True) if not done]
        score = factor[:, None] * squared_errors(task)
        return Scores(
            score,
            np.zeros_like(score),
            statistics={"hessian_top_eigenvalue": dict(zip(names, largest.tolist(), strict=True))},
            warnings=(
                f"the eigenvalue of {', '.join(loose)} still moved by more than "
                f"{self._tolerance:.1%} after {self._iterations} iterations; raise iterations",
            )
            if loose
            else (),
        )


@dataclass(frozen=True)
class _Layers:
    """A shard: the whole iteration for some layers, which does not look at the others.

    Attributes:
        rows: Numbers of the layers.
        iterations: Most steps of one power iteration.
        tolerance: Relative change of an eigenvalue at which it stops.
        engine: Who multiplies.
    """

    rows: range
    iterations: int
    tolerance: float
    engine: Engine


def _eigenvalues(context: ShardContext, shard: _Layers, step: Callable[[int], None]) -> Arrays:
    """Find the largest eigenvalues, and whether they settled: `[layers]` each."""
    rows = list(shard.rows)
    dominant, settled = _iterate(
        context, shard, rows, np.zeros(len(rows)), lambda done: step(done * len(rows))
    )
    largest = dominant.copy()
    negative = [place for place in range(len(rows)) if dominant[place] < 0]
    if negative:
        half = shard.iterations * len(rows)
        above, converged = _iterate(
            context,
            shard,
            [rows[place] for place in negative],
            dominant[negative],
            lambda done: step(min(half + done * len(rows), 2 * half - 1)),
        )
        largest[negative] = above + dominant[negative]
        settled[negative] &= converged
    return {"largest": largest, "settled": settled}


def _iterate(
    context: ShardContext,
    shard: _Layers,
    rows: Sequence[int],
    shift: NDArray[np.float64],
    on_step: Callable[[int], None],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Find the eigenvalue of largest magnitude of H_i - shift_i I for some layers."""
    task = context.task
    weights = layer_weights(task.model, task.layers)
    vectors = [_normalized(z) for row in rows for z in rademacher([weights[row]], (task.seed, row))]
    values = np.zeros(len(rows))
    settled = np.zeros(len(rows), dtype=np.bool_)
    for done in range(1, shard.iterations + 1):
        moving = {row: v for row, v, rests in zip(rows, vectors, settled, strict=True) if not rests}
        if not moving:
            break
        multiply = _own_products if shard.engine == "mpsearch" else _by_pyhessian
        products = multiply(context, weights, moving)
        for place, row in enumerate(rows):
            if row not in products:
                continue
            shifted = products[row] - shift[place] * vectors[place]
            value = float((vectors[place] * shifted).sum(dtype=torch.float64))
            if not math.isfinite(value):
                raise ModelError(f"{task.loss.name} or its Hessian is not finite on this data")
            settled[place] = abs(value - values[place]) <= shard.tolerance * abs(value)
            values[place] = value
            vectors[place] = _normalized(shifted)
        on_step(done)
    return values, settled


def _normalized(vector: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return vector / norm.to(vector.dtype) if float(norm) > 0 else vector


def _by_pyhessian(
    context: ShardContext, weights: list[Tensor], vectors: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Multiply each layer's own Hessian block with its vector by PyHessian."""
    found = {}
    for row, vector in vectors.items():
        with pyhessian_products(context.task, [weights[row]]) as multiply:
            (found[row],) = multiply([vector])
    return found


def _own_products(
    context: ShardContext, weights: list[Tensor], vectors: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Multiply each layer's own Hessian block with its vector, averaged over the data."""
    task = context.task
    totals = {row: torch.zeros_like(vector) for row, vector in vectors.items()}
    with differentiated(weights), evaluation_mode(task.model), twice_differentiable():
        for number, (inputs, target) in enumerate(task.data.batches()):
            share = len(inputs) / len(task.data)
            for row, product in _of_batch(context, weights, vectors, number, inputs, target):
                totals[row] += share * product
    return totals


def _of_batch(
    context: ShardContext,
    weights: list[Tensor],
    vectors: dict[int, Tensor],
    number: int,
    inputs: Tensor,
    target: Tensor | None,
) -> Iterator[tuple[int, Tensor]]:
    """Multiply on one batch, whose gradient is kept for the next step where it is the only one."""
    key = f"gradient of batch {number}"
    if key not in context.kept:
        context.kept.clear()  # before the next graph is built: one at a time
        loss = context.task.loss(forward(context.task.model, inputs), target)
        context.kept[key] = [None] * len(weights)
        if loss.requires_grad:
            context.kept[key] = torch.autograd.grad(
                loss, weights, create_graph=True, allow_unused=True
            )
    for row, vector in vectors.items():
        gradient: Tensor | None = context.kept[key][row]
        if gradient is None or not gradient.requires_grad:
            continue
        # One layer at a time: a joint product would mix in the blocks between layers.
        (product,) = torch.autograd.grad(
            [gradient], [weights[row]], [vector], retain_graph=True, allow_unused=True
        )
        if product is not None:
            yield row, product
