"""First-order sensitivity: the loss gradient against the quantization error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.formats import Format
from mpsearch.models.layers import Layer, evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.quantize import layer_module, weight_deviation
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.taps import own_use

__all__ = ["GradientDeviation", "differentiated", "layer_weights"]


class GradientDeviation(Estimator):
    """|<g_W, W - Q(W)>| + |<g_A, A - Q(A)>|, with gradients at the float model.

    The first-order Taylor term of the loss in a layer's weight and input. One backward pass over
    the data serves every layer and option: the weight gradient is kept and multiplied with each
    option's deviation, and each activation gradient is used the moment it appears and dropped.

    Source: AutoRound's DeltaLoss and SignRoundV2, which take the gradient at the quantized point.
    """

    name: ClassVar[str] = "gradient_deviation"
    scores_activations: ClassVar[bool] = True

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores without randomness, so standard errors are 0.

        Raises:
            ModelError: The loss is NaN or infinite.
        """
        products: dict[tuple[str, Format], float] = {}
        leaves: list[Tensor] = []
        gradients: dict[str, Tensor] = {}
        losses: list[float] = []
        weights = layer_weights(task.model, task.layers)
        total = math.ceil(len(task.data) / task.data.batch_size)
        with ExitStack() as hooks, differentiated(weights), evaluation_mode(task.model):
            for layer in task.layers:
                module = layer_module(task.model, layer.name)
                watch = _watch_input(task, layer.name, products, leaves)
                hooks.callback(module.register_forward_pre_hook(watch).remove)
            for done, (inputs, target) in enumerate(task.data.batches(), 1):
                share = len(inputs) / len(task.data)
                loss = share * task.loss(forward(task.model, inputs), target)
                losses.append(float(loss.detach()))
                found = torch.autograd.grad(loss, [*weights, *leaves], allow_unused=True)
                leaves.clear()
                for layer, gradient in zip(task.layers, found, strict=False):
                    if gradient is not None:
                        earlier = gradients.get(layer.name, torch.zeros((), dtype=torch.float64))
                        gradients[layer.name] = earlier + gradient.double()
                task.on_progress(Progress("profile", done, total, "gradients"))
        if not math.isfinite(math.fsum(losses)):
            raise ModelError(f"the model's {task.loss.name} is {math.fsum(losses)} on this data")
        return _scores(task, gradients, products, math.fsum(losses))


def _scores(
    task: ScoringTask,
    gradients: dict[str, Tensor],
    products: dict[tuple[str, Format], float],
    float_loss: float,
) -> Scores:
    score: NDArray[np.float64] = np.zeros((len(task.layers), len(task.options)))
    dead = [layer.name for layer in task.layers if not _any_nonzero(gradients.get(layer.name))]
    for row, layer in enumerate(task.layers):
        for column, option in enumerate(task.options):
            if not option.weight.is_float and layer.name in gradients:
                deviation = weight_deviation(task.quantizer, layer, option.weight)
                score[row, column] += abs(float((gradients[layer.name] * deviation).sum()))
            score[row, column] += abs(products.get((layer.name, option.activation), 0.0))
    warnings = (
        (f"gradient is zero everywhere in {', '.join(dead)}: their scores say nothing",)
        if dead
        else ()
    )
    return Scores(score, np.zeros_like(score), warnings=warnings, float_loss=float_loss)


def _watch_input(
    task: ScoringTask,
    layer: str,
    products: dict[tuple[str, Format], float],
    leaves: list[Tensor],
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
    quantize = {fmt: task.quantizer.activation(layer, fmt) for fmt in task.activation_formats}

    def before_forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not quantize or not inputs[0].is_floating_point():
            return None
        watched = own_use(inputs[0])
        if watched.is_leaf:
            leaves.append(watched)
        values = watched.detach()

        def on_gradient(gradient: Tensor) -> None:
            for fmt, function in quantize.items():
                product = float((gradient * (values - function(values))).sum(dtype=torch.float64))
                products[layer, fmt] = products.get((layer, fmt), 0.0) + product

        watched.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return (watched, *inputs[1:])

    return before_forward


def layer_weights(model: nn.Module, layers: Sequence[Layer]) -> list[Tensor]:
    """Collect the weights of layers.

    Args:
        model: The model.
        layers: The layers.

    Returns:
        Their weights, in the same order; the model's own tensors.
    """
    weights = []
    for layer in layers:
        weight = layer_module(model, layer.name).weight
        assert isinstance(weight, Tensor)
        weights.append(weight)
    return weights


@contextmanager
def differentiated(weights: Sequence[Tensor]) -> Iterator[None]:
    """Take gradients in these weights, frozen or not, and leave their flags as they were.

    Args:
        weights: Tensors to differentiate in.

    Yields:
        Nothing; gradients are enabled inside.
    """
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


def _any_nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.any(gradient != 0))
