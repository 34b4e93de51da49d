"""Second-order sensitivity in the worst direction: each layer's largest Hessian eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.sensitivity.gradient import differentiated, layer_weights
from mpsearch.sensitivity.hessian_products import (
    pyhessian_products,
    rademacher,
    twice_differentiable,
)
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.second_order import squared_errors

__all__ = ["HessianTopEigenvalue"]

Order = Literal["loss", "precision"]


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
        engine: Literal["mpsearch", "pyhessian"] = "mpsearch",
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
        self._multiply = _own_products if engine == "mpsearch" else _by_pyhessian

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
        everyone = list(range(len(task.layers)))
        dominant, settled = self._iterate(task, everyone, np.zeros(len(everyone)))
        largest = dominant.copy()
        negative = [row for row in everyone if dominant[row] < 0]
        if negative:
            above, converged = self._iterate(task, negative, dominant)
            largest[negative] = above[negative] + dominant[negative]
            settled[negative] &= converged[negative]
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

    def _iterate(
        self, task: ScoringTask, rows: Sequence[int], shift: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Find the eigenvalue of largest magnitude of H_i - shift_i I for some layers."""
        weights = layer_weights(task.model, task.layers)
        vectors = {
            row: _normalized(z)
            for row in rows
            for z in rademacher([weights[row]], (task.seed, row))
        }
        values = np.zeros(len(weights))
        settled = np.zeros(len(weights), dtype=np.bool_)
        for step in range(1, self._iterations + 1):
            moving = {row: v for row, v in vectors.items() if not settled[row]}
            if not moving:
                break
            products = self._multiply(task, weights, moving)
            for row, product in products.items():
                shifted = product - shift[row] * vectors[row]
                value = float((vectors[row] * shifted).sum(dtype=torch.float64))
                if not math.isfinite(value):
                    raise ModelError(f"{task.loss.name} or its Hessian is not finite on this data")
                settled[row] = abs(value - values[row]) <= self._tolerance * abs(value)
                values[row] = value
                vectors[row] = _normalized(shifted)
            task.on_progress(Progress("profile", step, self._iterations, "power iteration"))
        return values, settled


def _normalized(vector: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return vector / norm.to(vector.dtype) if float(norm) > 0 else vector


def _by_pyhessian(
    task: ScoringTask, weights: list[Tensor], vectors: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Multiply each layer's own Hessian block with its vector by PyHessian."""
    found = {}
    for row, vector in vectors.items():
        with pyhessian_products(task, [weights[row]]) as multiply:
            (found[row],) = multiply([vector])
    return found


def _own_products(
    task: ScoringTask, weights: list[Tensor], vectors: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Multiply each layer's own Hessian block with its vector, averaged over the data."""
    totals = {row: torch.zeros_like(vector) for row, vector in vectors.items()}
    with differentiated(weights), evaluation_mode(task.model), twice_differentiable():
        for inputs, target in task.data.batches():
            share = len(inputs) / len(task.data)
            loss = task.loss(forward(task.model, inputs), target)
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            for row, vector in vectors.items():
                gradient = gradients[row]
                if gradient is None or not gradient.requires_grad:
                    continue
                # One layer at a time: a joint product would mix in the blocks between layers.
                (product,) = torch.autograd.grad(
                    [gradient], [weights[row]], [vector], retain_graph=True, allow_unused=True
                )
                if product is not None:
                    totals[row] += share * product
    return totals
