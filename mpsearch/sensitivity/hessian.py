"""Second-order sensitivity: the trace of the Hessian, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.quantize import weight_deviation
from mpsearch.sensitivity.gradient import differentiated, layer_weights
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask

__all__ = ["HessianTrace", "hessian_vector_products"]


class HessianTrace(Estimator):
    """mean-trace(H_i) * ||Q(W_i) - W_i||^2 with mean-trace = Tr(H_i) / n_i.

    The trace is Hutchinson's estimate: E[z_i . (Hz)_i] = Tr(H_i) for z with independent +1 and -1
    entries over all layers together, so that one Hessian-vector product serves every layer; the
    cross-layer terms have mean zero and only add variance, which the standard error includes.

    Source: HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852); Hutchinson, "A stochastic estimator of the
    trace of the influence matrix", 1990.
    """

    name: ClassVar[str] = "hessian_trace"
    scores_activations: ClassVar[bool] = False

    def __init__(self, probes: int = 32) -> None:
        """Choose the number of probes.

        Args:
            probes: Random vectors, at least 2 so that a standard error exists.

        Raises:
            ValueError: Fewer than 2 probes.
        """
        if probes < 2:
            raise ValueError(f"probes must be at least 2, not {probes}")
        self._probes = probes

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores with standard errors over the probes; `statistics` holds `hessian_trace` and
            `hessian_trace_stderr` of every layer.
        """
        samples, float_loss = self._samples(task)
        trace = samples.mean(axis=0)
        stderr = samples.std(axis=0, ddof=1) / math.sqrt(self._probes)
        score: NDArray[np.float64] = np.zeros((len(task.layers), len(task.options)))
        error = np.zeros_like(score)
        for row, layer in enumerate(task.layers):
            for column, option in enumerate(task.options):
                if option.weight.is_float:
                    continue
                deviation = weight_deviation(task.quantizer, layer, option.weight)
                moved = float(deviation.double().square().sum()) / layer.weights
                score[row, column] = trace[row] * moved
                error[row, column] = stderr[row] * moved
        names = [layer.name for layer in task.layers]
        return Scores(
            score,
            error,
            statistics={
                "hessian_trace": dict(zip(names, trace.tolist(), strict=True)),
                "hessian_trace_stderr": dict(zip(names, stderr.tolist(), strict=True)),
            },
            warnings=_negative_traces(names, trace, stderr),
            float_loss=float_loss,
        )

    def _samples(self, task: ScoringTask) -> tuple[NDArray[np.float64], float]:
        """Sample z_i . (Hz)_i for every probe and layer over the whole data."""
        weights = layer_weights(task.model, task.layers)
        samples = np.zeros((self._probes, len(weights)))
        probes = list(_rademacher(weights, self._probes, task.seed))
        total = self._probes * math.ceil(len(task.data) / task.data.batch_size)
        done, losses = 0, []
        with differentiated(weights), evaluation_mode(task.model):
            for inputs, target in task.data.batches():
                share = len(inputs) / len(task.data)
                loss = share * task.loss(forward(task.model, inputs), target)
                losses.append(float(loss.detach()))
                products = hessian_vector_products(loss, weights, probes)
                for row, (probe, product) in enumerate(zip(probes, products, strict=True)):
                    samples[row] += [
                        float((z * hz).sum(dtype=torch.float64))
                        for z, hz in zip(probe, product, strict=True)
                    ]
                    done += 1
                    task.on_progress(Progress("profile", done, total, "Hessian-vector products"))
        float_loss = math.fsum(losses)
        if not math.isfinite(float_loss) or not np.isfinite(samples).all():
            raise ModelError(f"{task.loss.name} or its Hessian is not finite on this data")
        return samples, float_loss


def hessian_vector_products(
    loss: Tensor, weights: list[Tensor], vectors: list[list[Tensor]]
) -> Iterator[list[Tensor]]:
    """Multiply the Hessian of a loss with vectors, over one retained graph.

    Args:
        loss: A scalar with a graph.
        weights: Tensors that the Hessian is taken in, jointly.
        vectors: Vectors, each a list of tensors shaped like the weights.

    Yields:
        H·v for each vector, as a list shaped like the weights; zeros where the gradient does not
        depend on a weight.
    """
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    curved = [
        (gradient, index)
        for index, gradient in enumerate(gradients)
        if gradient is not None and gradient.requires_grad
    ]
    for number, vector in enumerate(vectors):
        if not curved:
            yield [torch.zeros_like(weight) for weight in weights]
            continue
        products = torch.autograd.grad(
            [gradient for gradient, _ in curved],
            weights,
            grad_outputs=[vector[index] for _, index in curved],
            retain_graph=number < len(vectors) - 1,
            allow_unused=True,
        )
        yield [
            torch.zeros_like(weight) if product is None else product
            for weight, product in zip(weights, products, strict=True)
        ]


def _rademacher(weights: list[Tensor], count: int, seed: int) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield [
            (torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1).to(weight)
            for weight in weights
        ]


def _negative_traces(
    names: list[str], trace: NDArray[np.float64], stderr: NDArray[np.float64]
) -> tuple[str, ...]:
    negative = [
        f"{name} ({value:.3g} ± {error:.2g})"
        for name, value, error in zip(names, trace, stderr, strict=True)
        if value < 0
    ]
    if not negative:
        return ()
    return (
        f"the estimated Hessian trace is negative in {', '.join(negative)}; "
        "their scores fall as the error grows",
    )
