"""Products of output errors with gradients, taken as a backward pass brings these; in shards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.models.dataset import Batch
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.sensitivity.output_curvature import (
    Draw,
    complete_factors,
    draw_factor,
    draw_generator,
)
from mpsearch.sensitivity.output_error import output_errors
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shard_files import Arrays
from mpsearch.sensitivity.shard_payload import ShardContext
from mpsearch.sensitivity.shard_plan import batches_of, cells, forward_flops, some_batches
from mpsearch.sensitivity.sharding import Work, run_shards
from mpsearch.sensitivity.taps import Call, frozen, refuse_rows, tapped

__all__ = ["EXACT_DRAWS", "OutputTerms", "Wanted", "output_terms", "small_batches"]

EXACT_DRAWS = 10
"""Classes that memory and time are planned for where there is one draw for each of them."""

MAPPED = 2**25
"""Bytes from which glibc's malloc takes every block anew from the kernel, page by page, and gives
it back when it is freed: 32 MiB, the most that its dynamic threshold grows to (mallopt(3),
M_MMAP_THRESHOLD). For the outputs of early convolutions that takes as long as the arithmetic."""


@dataclass(frozen=True)
class Wanted:
    """What to multiply output errors with, and how.

    Attributes:
        terms: `products`: <g_n, ΔY_n> of every input n; `squares`: Σ g² ΔY² over the elements of
            the output, of the whole batch.
        slopes: Whether to take the gradient of every input's own loss.
        draws: How many random factors of the loss's second derivative to take, or `exact` for one
            per class.
        draw: How factors are drawn.
    """

    terms: Literal["products", "squares"]
    slopes: bool
    draws: int | Literal["exact"]
    draw: Draw

    @property
    def passes(self) -> int:
        """Backward passes over the data, about."""
        return self.slopes + (EXACT_DRAWS if isinstance(self.draws, str) else self.draws)


@dataclass(frozen=True)
class OutputTerms:
    """What options do to the loss and to its curvature factors, to first order in the layer.

    Attributes:
        slopes: Terms of the gradient of every input's own loss, rows x layers x options, where a
            row is an input or, for `squares`, a batch; None where the loss was not differentiated.
        factors: Terms of J_nᵀ v_n for every draw of v_n with E[v_n v_nᵀ] = ∂²l/∂output²,
            draws x rows x layers x options.
        float_loss: Loss of the unquantized model where it was differentiated.
    """

    slopes: NDArray[np.float64] | None
    factors: NDArray[np.float64]
    float_loss: float | None


@dataclass(frozen=True)
class _Batches:
    """A shard: some batches, with all layers and options.

    Attributes:
        batches: Numbers of the batches.
        wanted: What to compute.
    """

    batches: range
    wanted: Wanted


def output_terms(task: ScoringTask, wanted: Wanted) -> OutputTerms:
    """Multiply output errors of all layers and options with gradients as these arrive.

    Args:
        task: Model, layers, options, data.
        wanted: What to compute.

    Returns:
        The terms.
    """
    task = small_batches(task)
    flops = (1 + wanted.passes + len(task.options)) * forward_flops(task)
    grid = cells(batches_of(task), 1, flops)
    work = Work(
        _shard,
        [_Batches(cell.batches, wanted) for cell in grid],
        [cell.steps for cell in grid],
        "output gradients",
        settings={
            "seed": task.seed,
            "layers": [layer.name for layer in task.layers],
            "options": [repr(option) for option in task.options],
        },
    )
    found = run_shards(task, work)
    terms = np.concatenate([arrays["terms"] for arrays in found], axis=1)
    losses = [float(loss) for arrays in found for loss in arrays["losses"]]
    return OutputTerms(
        slopes=terms[0] if wanted.slopes else None,
        factors=terms[1:] if wanted.slopes else terms,
        float_loss=math.fsum(losses) if wanted.slopes else None,
    )


def small_batches(task: ScoringTask) -> ScoringTask:
    """Cut batches so that no layer's input or output is a block that malloc does not keep.

    Args:
        task: Its data; not cut on other devices, which keep their memory themselves.

    Returns:
        The task with batches as large as they were, or smaller and of about equal size.
    """
    if task.data.inputs.device.type != "cpu" or not task.layers:
        return task
    number = max(
        math.prod(shape)
        for layer in task.layers
        for shape in (layer.input_shape, layer.output_shape)
    )
    width = max((p.element_size() for p in task.model.parameters()), default=4)
    most = max(1, MAPPED // max(1, width * number))
    batch = min(task.data.batch_size, len(task.data))
    return replace(task, data=replace(task.data, batch_size=-(-batch // -(-batch // most))))


def _shard(context: ShardContext, shard: _Batches, step: Callable[[int], None]) -> Arrays:
    """Compute terms `[vectors, rows, layers, options]` and shares of the loss `[batches]`."""
    task, losses = context.task, []
    collector = _Terms(task, shard.wanted)
    with frozen(task.model), evaluation_mode(task.model), tapped(task, collector) as taps:
        data = some_batches(task, shard.batches)
        for position, (number, batch) in enumerate(zip(shard.batches, data, strict=True)):
            taps.restart()
            output = forward(task.model, batch[0])
            loss, vectors = _vectors(output, task, batch, number, shard.wanted)
            losses.append(loss * len(batch[0]) / len(task.data))
            collector.start(len(batch[0]), len(vectors))
            for left, vector in zip(range(len(vectors) - 1, -1, -1), vectors, strict=True):
                collector.last = left == 0
                if output.requires_grad:
                    # Autograd imports sympy, which takes a second, to check a vector's shape; the
                    # derivative of a sum needs none.
                    total = (output * vector()).sum()
                    torch.autograd.grad(
                        total, taps.leaves, retain_graph=left > 0, allow_unused=True
                    )
            if position < len(shard.batches) - 1:
                step(position + 1)
    return {"terms": np.concatenate(collector.parts, axis=1), "losses": np.array(losses)}


def _vectors(
    output: Tensor, task: ScoringTask, batch: Batch, number: int, wanted: Wanted
) -> tuple[float, list[Callable[[], Tensor]]]:
    """List what the output is differentiated with; with the batch's loss where that is read."""
    vectors: list[Callable[[], Tensor]] = []
    value = 0.0
    if wanted.slopes:
        # Every input's own loss, differentiated in the output apart from the model's graph.
        leaf = output.detach().requires_grad_()
        loss = task.loss(leaf, batch[1])
        value = float(loss.detach())
        slope = torch.zeros_like(leaf)
        if loss.requires_grad:
            (slope,) = torch.autograd.grad(len(leaf) * loss, [leaf])
        vectors.append(lambda: slope)
    if isinstance(wanted.draws, str):
        return value, vectors + complete_factors(output, task.loss)

    def factor(draw: int) -> Tensor:
        generator = draw_generator(task.seed, draw, number)
        return draw_factor(output, task.loss, generator, wanted.draw)

    return value, [*vectors, *(lambda draw=draw: factor(draw) for draw in range(wanted.draws))]


class _Terms:
    """Terms of every batch, vectors x rows x layers x options; gradients wait for the last one."""

    def __init__(self, task: ScoringTask, wanted: Wanted) -> None:
        self.parts: list[NDArray[np.float64]] = []
        self.last = False
        self._task = task
        self._reduce = _squares if wanted.terms == "squares" else _products
        self._by_input = wanted.terms == "products"
        self._rows = {layer.name: row for row, layer in enumerate(task.layers)}
        self._kept: dict[tuple[str, int], list[Tensor]] = {}

    def start(self, batch: int, vectors: int) -> None:
        """Begin a batch."""
        self._batch = batch
        rows = batch if self._by_input else 1
        self.parts.append(np.zeros((vectors, rows, len(self._rows), len(self._task.options))))

    def __call__(self, call: Call, gradient: Tensor) -> None:
        key = call.use, call.number
        self._kept.setdefault(key, []).append(gradient.detach())
        if not self.last:
            return
        gradients = self._kept.pop(key)
        if self._by_input:
            refuse_rows(call, self._batch, len(gradient))
        row = self._rows[call.layer]
        arranged, slopes = None, gradients
        for column, error in enumerate(output_errors(self._task, call)):
            if error is None:
                continue
            if error.arranged is not arranged:
                arranged, slopes = error.arranged, [error.arranged(g) for g in gradients]
            for vector, slope in enumerate(slopes):
                # The error's own memory serves for its last product.
                last = slope is slopes[-1]
                product = error.values.mul_(slope) if last else error.values * slope
                self.parts[-1][vector, :, row, column] += self._reduce(product, self._batch)
        call.release()


def _squares(product: Tensor, _: int) -> float:
    # Norms over a piece of the memory in the tensor's own type, their sum in float64: a
    # conversion of all elements would cost as much as the layer, one norm of all loses digits.
    norms = torch.linalg.vector_norm(product, dim=-1)
    return float(norms.double().square().sum())


def _products(product: Tensor, batch: int) -> NDArray[np.float64]:
    sums = product.sum(dim=-1).double()
    found: NDArray[np.float64] = sums.reshape(batch, -1).sum(dim=1).cpu().numpy()
    return found
