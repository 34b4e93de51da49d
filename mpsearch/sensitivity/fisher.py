"""Fisher information by backward passes alone: traces and output-space scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Format
from mpsearch.models.layers import Layer, evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.quantize import layer_module, weight_deviation
from mpsearch.sensitivity.gradient import refuse_flat
from mpsearch.sensitivity.output_curvature import Draw, class_axis, complete_factors, draw_factor
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.sample_gradients import SampleNorms
from mpsearch.sensitivity.second_order import trace_scores
from mpsearch.sensitivity.taps import Call, frozen, tapped

__all__ = ["EmpiricalFisher", "GgnTrace"]


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
        rows = {layer.name: row for row, layer in enumerate(task.layers)}
        found: list[NDArray[np.float64]] = []
        generator = torch.Generator().manual_seed(task.seed)
        with _norm_passes(task) as passes:
            for number, (inputs, _) in enumerate(task.data.batches()):
                output = passes.forward(inputs)
                factors = self._factors(output, task, generator)
                if not found:
                    found = [np.zeros(len(rows)) for _ in factors]
                for k, factor in enumerate(factors):
                    for layer, norms in passes.backward(output, factor(), k < len(factors) - 1):
                        found[k][rows[layer]] += float(norms.sum()) / len(task.data)
                passes.report(number, "gradients of drawn losses")
        samples = np.array(found)
        if not np.isfinite(samples).all():
            raise ModelError(f"the output or a gradient of {task.loss.name} is nan or infinite")
        if self._draws == "exact":
            return trace_scores(task, "ggn_trace", samples.sum(axis=0), np.zeros(len(rows)))
        stderr = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
        return trace_scores(task, "ggn_trace", samples.mean(axis=0), stderr)

    def _factors(
        self, output: Tensor, task: ScoringTask, generator: torch.Generator
    ) -> list[Callable[[], Tensor]]:
        if self._draws == "exact":
            return complete_factors(output, task.loss)
        assert isinstance(self._draws, int)
        return [lambda: draw_factor(output, task.loss, generator, self._draw)] * self._draws


class EmpiricalFisher(Estimator):
    """Tr(F_W) * noise(W, b) + Tr(F_A) * noise(A, b), with Tr(F) the mean of ||g_n||² over inputs.

    g_n is the gradient of one input's own loss in the layer's weight or input, so that the trace
    does not depend on the batch size. The noise is the squared step ((max - min)/(2^b - 1))² where
    every offered format has a uniform step; as soon as one has not, it is the measured mean of
    (Q(x) - x)² for all of them, so that no format is favoured by the unit of its noise.

    Source: FIT (Zandonati et al. 2022, arXiv 2210.08502).
    """

    name: ClassVar[str] = "empirical_fisher"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores without randomness; `statistics` holds `fisher_trace` and, where activations are
            quantized, `activation_fisher_trace`.

        Raises:
            ModelError: The loss is NaN or infinite.
        """
        refuse_flat(self.name, task.loss)
        weights = dict.fromkeys((layer.name for layer in task.layers), 0.0)
        activations = dict.fromkeys(weights, 0.0)
        noise = _Noise(task)
        losses = []

        def on_input(call: Call, gradient: Tensor) -> None:
            # One input's gradient is its row of the batch's: no other input's loss depends on it.
            squared = gradient.square().sum(dtype=torch.float64)
            activations[call.layer] += float(squared) / len(task.data)
            noise.watch(call)
            call.release()

        with _norm_passes(task, on_input if task.activation_formats else None) as passes:
            for number, (inputs, target) in enumerate(task.data.batches()):
                loss = len(inputs) * task.loss(passes.forward(inputs), target)
                losses.append(float(loss.detach()) / len(task.data))
                for name, norms in passes.backward(loss, None, keep=False):
                    weights[name] += float(norms.sum()) / len(task.data)
                passes.report(number, "gradients of single inputs")
        if not math.isfinite(math.fsum(losses)):
            raise ModelError(f"the model's {task.loss.name} is {math.fsum(losses)} on this data")
        score = np.zeros((len(task.layers), len(task.options)))
        for row, layer in enumerate(task.layers):
            for column, option in enumerate(task.options):
                if not option.weight.is_float:
                    score[row, column] += weights[layer.name] * noise.weight(layer, option.weight)
                if not option.activation.is_float:
                    moved = noise.activation(layer, option.activation)
                    score[row, column] += activations[layer.name] * moved
        statistics = {"fisher_trace": weights}
        if task.activation_formats:
            statistics["activation_fisher_trace"] = activations
        return Scores(
            score,
            np.zeros_like(score),
            statistics=statistics,
            warnings=_dead(weights),
            float_loss=math.fsum(losses),
        )


def _dead(traces: dict[str, float]) -> tuple[str, ...]:
    dead = [name for name, trace in traces.items() if trace == 0]
    return (
        (f"gradient is zero everywhere in {', '.join(dead)}: their scores say nothing",)
        if dead
        else ()
    )


class _Noise:
    """Mean squared quantization error of weights and inputs, by steps or as measured."""

    def __init__(self, task: ScoringTask) -> None:
        self._task = task
        formats = [*task.weight_formats, *task.activation_formats]
        self._measured = any(fmt.uniform_step(-1.0, 1.0) is None for fmt in formats)
        self._range: dict[str, tuple[float, float]] = {}
        self._sum: dict[tuple[str, Format], float] = {}
        self._count: dict[str, int] = {}

    def watch(self, call: Call) -> None:
        layer, values = call.layer, call.take()
        if not values.numel():
            return  # an expert that nothing was sent to
        low, high = (float(x) for x in torch.aminmax(values))
        seen = self._range.get(layer, (low, high))
        self._range[layer] = min(low, seen[0]), max(high, seen[1])
        self._count[layer] = self._count.get(layer, 0) + values.numel()
        for fmt in self._task.activation_formats if self._measured else []:
            moved = self._task.quantizer.activation(layer, fmt)(values, call.axis) - values
            earlier = self._sum.get((layer, fmt), 0.0)
            self._sum[layer, fmt] = earlier + float(moved.double().square().sum())

    def weight(self, layer: Layer, fmt: Format) -> float:
        if self._measured:
            moved = weight_deviation(self._task.quantizer, layer, fmt)
            return float(moved.double().square().mean())
        weight = self._task.quantizer.original(layer.name)
        low, high = (float(x) for x in torch.aminmax(weight))
        return _step_squared(fmt, low, high)

    def activation(self, layer: Layer, fmt: Format) -> float:
        if self._measured:
            return self._sum.get((layer.name, fmt), 0.0) / max(1, self._count.get(layer.name, 0))
        return _step_squared(fmt, *self._range.get(layer.name, (0.0, 0.0)))


def _step_squared(fmt: Format, low: float, high: float) -> float:
    return float(((high - low) / (2.0**fmt.bits - 1)) ** 2)


@dataclass
class _NormPasses:
    """Forward passes, and backward passes that give squared gradient norms layer by layer."""

    task: ScoringTask
    collector: SampleNorms
    leaves: list[Tensor]
    restart: Callable[[], None]
    arrived: list[tuple[str, Tensor]] = field(default_factory=list)

    def forward(self, inputs: Tensor) -> Tensor:
        self.restart()
        self.collector.batch = len(inputs)
        return forward(self.task.model, inputs)

    def backward(
        self, output: Tensor, vector: Tensor | None, keep: bool
    ) -> list[tuple[str, Tensor]]:
        self.arrived.clear()
        if output.requires_grad:
            torch.autograd.grad(output, self.leaves, vector, retain_graph=keep, allow_unused=True)
        return self.arrived

    def report(self, number: int, what: str) -> None:
        total = math.ceil(len(self.task.data) / self.task.data.batch_size)
        self.task.on_progress(Progress("profile", number + 1, total, what))


@contextmanager
def _norm_passes(
    task: ScoringTask, on_input: Callable[[Call, Tensor], None] | None = None
) -> Iterator[_NormPasses]:
    arrived: list[tuple[str, Tensor]] = []
    for layer in task.layers:
        if layer.tied:
            raise InputError(
                f"layer {layer.name} shares its weight with {', '.join(layer.tied)}, whose "
                "gradients of single inputs are not added up here; skip it, or use "
                "gradient_deviation, fisher_output, hessian_trace or a measured estimator"
            )
    modules = {layer.name: layer_module(task.model, layer.name) for layer in task.layers}
    collector = SampleNorms(modules, lambda layer, norms: arrived.append((layer, norms)))
    with (
        frozen(task.model),
        evaluation_mode(task.model),
        tapped(task, collector, on_input) as taps,
    ):
        collector.calls = taps.calls
        yield _NormPasses(task, collector, taps.leaves, taps.restart, arrived)
