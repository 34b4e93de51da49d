"""Output-space sensitivity: how a layer's output error meets the loss gradient there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Format, Option
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.quantize import Quantizer
from mpsearch.sensitivity.output_curvature import Draw, class_axis, draw_factor
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.taps import Call, frozen, substituted, tapped

__all__ = ["FisherOutput", "output_errors"]

LINEAR_IN_WEIGHT = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Embedding,
)


class FisherOutput(Estimator):
    """mean_n Σ (∂l_n/∂Y_i)² (Y_i,q - Y_i)² over the elements of the layer's output Y_i.

    The diagonal of the Fisher matrix in the layer's output, weighting the output error of every
    option. l_n is one input's own loss, so that the score does not depend on the batch size. One
    backward pass that computes no weight gradient serves all options; each option costs one forward
    of the layer alone, and everything is dropped layer by layer as the backward pass goes.

    `labels="given"` takes the gradients of the loss with the data's targets (the empirical
    Fisher); `labels="model"` draws factors of the loss's second derivative instead, which needs no
    targets and is the Gauss-Newton matrix; `auto` takes the data's targets where the loss reads
    them.

    Source: BRECQ (Li et al. 2021, arXiv 2102.05426), equation 10; NVIDIA ModelOpt's `auto_quantize`
    gradient score.
    """

    name: ClassVar[str] = "fisher_output"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def __init__(
        self,
        labels: Literal["auto", "given", "model"] = "auto",
        draws: int = 4,
        draw: Draw = "signs",
    ) -> None:
        """Choose whose labels the gradients are of.

        Args:
            labels: `given`, `model`, or `auto`.
            draws: Backward passes when labels are the model's, at least 2.
            draw: How factors are drawn then, see `draw_factor`.

        Raises:
            ValueError: An unknown choice, or fewer than 2 draws.
        """
        if labels not in {"auto", "given", "model"}:
            raise ValueError(f"labels is 'auto', 'given' or 'model', not {labels!r}")
        if draw not in {"signs", "labels"}:
            raise ValueError(f"draw is 'signs' or 'labels', not {draw!r}")
        if draws < 2:
            raise ValueError(f"draws must be at least 2, not {draws}")
        self._labels = labels
        self._draws = draws
        self._draw = draw

    @property
    def held(self) -> float:
        """Output gradients are kept until the last draw has come."""
        return 1.0 + self._draws

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores; standard errors over the draws where labels are the model's, else 0.

        Raises:
            ModelError: The loss or a gradient is NaN or infinite.
        """
        from_model = self._from_model(task)
        draws = self._draws if from_model else 1
        generator = torch.Generator().manual_seed(task.seed)
        collector = _Collector(task, draws)
        losses = []
        total = math.ceil(len(task.data) / task.data.batch_size)
        with (
            frozen(task.model),
            evaluation_mode(task.model),
            tapped(task, collector) as taps,
        ):
            for number, (inputs, target) in enumerate(task.data.batches(), 1):
                taps.restart()
                output = forward(task.model, inputs)
                vectors: Iterator[Tensor | None] = iter([None])
                if from_model:
                    vectors = (
                        draw_factor(output, task.loss, generator, self._draw) for _ in range(draws)
                    )
                else:
                    output = len(inputs) * task.loss(output, target)
                    losses.append(float(output.detach()) / len(task.data))
                for draw, vector in enumerate(vectors):
                    collector.draw = draw
                    if output.requires_grad:
                        torch.autograd.grad(
                            output,
                            taps.leaves,
                            vector,
                            retain_graph=draw < draws - 1,
                            allow_unused=True,
                        )
                task.on_progress(Progress("profile", number, total, "output gradients"))
        samples = collector.samples / len(task.data)
        if not (np.isfinite(samples).all() and math.isfinite(math.fsum(losses))):
            raise ModelError(f"{task.loss.name} or its gradient is nan or infinite on this data")
        spread = samples.std(axis=0, ddof=1) / math.sqrt(draws) if draws > 1 else 0 * samples[0]
        return Scores(
            samples.mean(axis=0),
            spread,
            warnings=_dead(task, samples),
            float_loss=math.fsum(losses) if losses else None,
        )

    def _from_model(self, task: ScoringTask) -> bool:
        if self._labels != "auto":
            return self._labels == "model"
        if task.loss.target == "float_output":
            # Its gradient is zero at the float model; only its second derivative says anything.
            return True
        if task.data.targets is None:
            try:
                class_axis(task.loss)
            except InputError:
                return False
            return True
        return False


class _Collector:
    """Multiplies output errors with output gradients as these arrive; one row per draw."""

    def __init__(self, task: ScoringTask, draws: int) -> None:
        self.samples: NDArray[np.float64] = np.zeros((draws, len(task.layers), len(task.options)))
        self.draw = 0
        self._task = task
        self._rows = {layer.name: row for row, layer in enumerate(task.layers)}
        self._kept: dict[tuple[str, int], list[Tensor]] = {}

    def __call__(self, call: Call, gradient: Tensor) -> None:
        key = call.use, call.number
        self._kept.setdefault(key, []).append(gradient.detach())
        if self.draw < len(self.samples) - 1:
            return
        gradients = self._kept.pop(key)
        row = self._rows[call.layer]
        errors = output_errors(self._task, call)
        for column, error in enumerate(errors):
            if error is None:
                continue
            for draw, slope in enumerate(gradients):
                last = draw == len(gradients) - 1
                weighted = error.mul_(slope) if last else error * slope
                # One norm per input in the tensor's own type, the sum over inputs in float64: a
                # conversion of all elements would cost as much as the layer itself.
                norms = torch.linalg.vector_norm(weighted.flatten(1), dim=1).double()
                self.samples[draw, row, column] += float(norms.square().sum())
        call.release()


def output_errors(task: ScoringTask, call: Call) -> Iterator[Tensor | None]:
    """Compute by how much each option changes a layer's output in one call.

    Args:
        task: Model, options and quantizer.
        call: The call, with the layer's float input.

    Yields:
        Y_q - Y for every option, in the shape of the output; None for `float`.
    """
    module, inputs = task.model.get_submodule(call.use), call.take()
    weight = task.quantizer.original(call.layer)
    linear = isinstance(module, LINEAR_IN_WEIGHT)
    reference: Tensor | None = None
    rounded: dict[Format, Tensor] = {}
    for option in task.options:
        if option.is_float:
            yield None
            continue
        with torch.no_grad():
            changed = (
                {}
                if option.weight.is_float
                else {"weight": task.quantizer.weight(call.layer, option.weight)}
            )
            if option.activation.is_float and linear:
                yield _run(module, inputs, {"weight": changed["weight"] - weight, "bias": None})
                continue
            if reference is None:
                reference = _run(module, inputs, {})
            if option.activation not in rounded:
                rounded = {option.activation: _rounded(task.quantizer, call, option)}
            yield _run(module, rounded[option.activation], changed) - reference


def _rounded(quantizer: Quantizer, call: Call, option: Option) -> Tensor:
    values = call.take()
    if option.activation.is_float or not values.is_floating_point():
        return values
    return quantizer.activation(call.layer, option.activation)(values, call.axis)


def _run(module: nn.Module, inputs: Tensor, tensors: Mapping[str, Tensor | None]) -> Tensor:
    with substituted(module, tensors):
        output: Tensor = module.forward(inputs)
        return output


def _dead(task: ScoringTask, samples: NDArray[np.float64]) -> tuple[str, ...]:
    quantized = [column for column, option in enumerate(task.options) if not option.is_float]
    names = [
        layer.name for row, layer in enumerate(task.layers) if not samples[:, row, quantized].any()
    ]
    if not quantized or not names:
        return ()
    return (f"gradient or output error is zero in {', '.join(names)}: their scores say nothing",)
