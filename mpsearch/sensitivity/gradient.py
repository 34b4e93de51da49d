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

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Format
from mpsearch.losses import Loss
from mpsearch.models.layers import Layer, evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.quantize import layer_weight, weight_deviation
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.taps import frozen, own_use, watch_inputs

__all__ = ["GradientDeviation", "differentiated", "layer_weights", "refuse_flat"]


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
        refuse_flat(self.name, task.loss)
        products: dict[tuple[str, Format], float] = {}
        leaves: list[Tensor] = []
        gradients: dict[str, Tensor] = {}
        losses: list[float] = []
        weights = layer_weights(task.model, task.layers)
        total = math.ceil(len(task.data) / task.data.batch_size)
        with (
            ExitStack() as hooks,
            frozen(task.model),
            differentiated(weights),
            evaluation_mode(task.model),
        ):
            if task.activation_formats:
                hooks.enter_context(watch_inputs(task, _input_watcher(task, products, leaves)))
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


def _input_watcher(
    task: ScoringTask, products: dict[tuple[str, Format], float], leaves: list[Tensor]
) -> Callable[[int, Tensor, int], Tensor | None]:
    def watch(row: int, inputs: Tensor, axis: int) -> Tensor:
        layer = task.layers[row].name
        watched = own_use(inputs)
        if watched.is_leaf:
            leaves.append(watched)
        values = watched.detach()

        def on_gradient(gradient: Tensor) -> None:
            for fmt in task.activation_formats:
                moved = values - task.quantizer.activation(layer, fmt)(values, axis)
                product = float((gradient * moved).sum(dtype=torch.float64))
                products[layer, fmt] = products.get((layer, fmt), 0.0) + product

        watched.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return watched

    return watch


def refuse_flat(estimator: str, loss: Loss) -> None:
    """Refuse a loss whose gradient is zero at the float model whatever the layer.

    Args:
        estimator: Name of the estimator, for the message.
        loss: The loss.

    Raises:
        InputError: The loss compares with the float model itself.
    """
    if loss.target == "float_output":
        raise InputError(
            f"{estimator} reads the gradient of the loss, and that of {loss.name} is zero at the "
            "float model; give labels and a loss that uses them, or use fisher_output, ggn_trace, "
            "taylor2 or measured_kl"
        )


def layer_weights(model: nn.Module, layers: Sequence[Layer]) -> list[Tensor]:
    """Collect the weights of layers.

    Args:
        model: The model.
        layers: The layers.

    Returns:
        Their weights, in the same order; the model's own tensors.
    """
    return [layer_weight(model, layer.name) for layer in layers]


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
