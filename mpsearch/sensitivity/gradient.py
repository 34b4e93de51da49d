"""First-order sensitivity: the loss gradient against the quantization error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Format, Option, parse_option
from mpsearch.losses import Loss
from mpsearch.models.layers import Layer, evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.quantize import layer_weight, weight_deviation
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.taps import frozen, own_use, watch_inputs

__all__ = ["GradientDeviation", "differentiated", "layer_weights", "refuse_flat"]

FLOAT = parse_option("float")


class GradientDeviation(Estimator):
    """|<g_W, W - Q(W)>| + |<g_A, A - Q(A)>|, the first-order Taylor term in weight and input.

    `at="float"`: one backward pass over the data serves every layer and option; the weight gradient
    is kept and multiplied with each option's deviation, and each activation gradient is used the
    moment it appears and dropped. `at="quantized"`: the gradients are taken with every layer at the
    option, one backward pass per option, with the straight-through estimator for activations; there
    a loss that compares with the float model has a gradient, too. `elementwise=True` adds up
    |g · (W - Q(W))| over the elements, so that terms of different sign do not cancel.

    Source: AutoRound's DeltaLoss and SignRoundV2 (gradient at the quantized point).
    """

    name: ClassVar[str] = "gradient_deviation"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def __init__(
        self, elementwise: bool = False, at: Literal["float", "quantized"] = "float"
    ) -> None:
        """Choose the form of the inner product and where the gradient is taken.

        Args:
            elementwise: Whether magnitudes are summed instead of signed terms.
            at: `float` or `quantized`.

        Raises:
            ValueError: Another point.
        """
        if at not in {"float", "quantized"}:
            raise ValueError(f"at is 'float' or 'quantized', not {at!r}")
        self._elementwise = elementwise
        self._at = at

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores without randomness, so standard errors are 0.
        """
        score: NDArray[np.float64] = np.zeros((len(task.layers), len(task.options)))
        float_loss, alive = None, np.zeros(len(task.layers), dtype=np.bool_)
        if self._at == "float":
            refuse_flat(self.name, task.loss)
            formats, offered = task.activation_formats, list(range(len(task.options)))
            found = _gradients(task, formats, {}, self._elementwise, (0, 1))
            alive |= self._fill(score, task, found, offered)
            float_loss = found.loss
        else:
            offered = [c for c, option in enumerate(task.options) if not option.is_float]
            for number, column in enumerate(offered):
                option = task.options[column]
                formats = [] if option.activation.is_float else [option.activation]
                point = {layer.name: option for layer in task.layers}
                part = number, len(offered)
                found = _gradients(task, formats, point, self._elementwise, part)
                alive |= self._fill(score, task, found, [column])
        dead = [layer.name for layer, lives in zip(task.layers, alive, strict=True) if not lives]
        warnings = (
            (f"gradient is zero everywhere in {', '.join(dead)}: their scores say nothing",)
            if dead
            else ()
        )
        return Scores(score, np.zeros_like(score), warnings=warnings, float_loss=float_loss)

    def _fill(
        self, score: NDArray[np.float64], task: ScoringTask, found: _Gradients, columns: list[int]
    ) -> NDArray[np.bool_]:
        """Write the scores of some options, and tell which layers have a gradient at all."""
        for row, layer in enumerate(task.layers):
            gradient = found.weights.get(layer.name)
            for column in columns:
                option = task.options[column]
                if not option.weight.is_float and gradient is not None:
                    product = gradient * weight_deviation(task.quantizer, layer, option.weight)
                    score[row, column] += _summed(product, self._elementwise)
                score[row, column] += abs(found.inputs.get((layer.name, option.activation), 0.0))
        return np.array([_any_nonzero(found.weights.get(layer.name)) for layer in task.layers])


@dataclass(frozen=True)
class _Gradients:
    """Gradients of the loss, at the float model or with options on.

    Attributes:
        weights: Layer -> gradient of the mean loss in its weight.
        inputs: (layer, format) -> inner product of the input's gradient with its deviation.
        loss: The mean loss.
    """

    weights: dict[str, Tensor]
    inputs: dict[tuple[str, Format], float]
    loss: float


def _gradients(
    task: ScoringTask,
    formats: Sequence[Format],
    point: Mapping[str, Option],
    elementwise: bool,
    part: tuple[int, int],
) -> _Gradients:
    """Differentiate the mean loss over the data, with the weights of `point` on."""
    products: dict[tuple[str, Format], float] = {}
    leaves: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    losses: list[float] = []
    weights = layer_weights(task.model, task.layers)
    batches = math.ceil(len(task.data) / task.data.batch_size)
    on_weights = {layer: replace(o, activation=FLOAT.activation) for layer, o in point.items()}
    with (
        ExitStack() as hooks,
        frozen(task.model),
        task.quantizer.options(on_weights),
        differentiated(weights),
        evaluation_mode(task.model),
    ):
        if formats:
            watch = _input_watcher(task, formats, products, leaves, elementwise, bool(point))
            hooks.enter_context(watch_inputs(task, watch, differentiated=True))
        for done, (inputs, target) in enumerate(task.data.batches(), 1):
            share = len(inputs) / len(task.data)
            loss = share * task.loss(forward(task.model, inputs), target)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ModelError(f"the model's {task.loss.name} is {losses[-1]} on this data")
            found = torch.autograd.grad(loss, [*weights, *leaves], allow_unused=True)
            leaves.clear()
            for layer, gradient in zip(task.layers, found, strict=False):
                _add(gradients, layer.name, gradient)
            steps = part[0] * batches + done
            task.on_progress(Progress("profile", steps, part[1] * batches, "gradients"))
    return _Gradients(gradients, products, math.fsum(losses))


def _add(gradients: dict[str, Tensor], layer: str, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    earlier = gradients.get(layer)
    # Only sums are made in float64: a single batch's gradient is as it is.
    gradients[layer] = gradient if earlier is None else earlier.double().add_(gradient)


def _summed(product: Tensor, elementwise: bool) -> float:
    if elementwise:
        return float(product.abs().sum(dtype=torch.float64))
    return abs(float(product.sum(dtype=torch.float64)))


def _input_watcher(
    task: ScoringTask,
    formats: Sequence[Format],
    products: dict[tuple[str, Format], float],
    leaves: list[Tensor],
    elementwise: bool,
    rounded: bool,
) -> Callable[[int, Tensor, int], Tensor | None]:
    def watch(row: int, inputs: Tensor, axis: int) -> Tensor:
        layer = task.layers[row].name
        values = inputs.detach()
        if rounded:
            # Straight through: the value is the rounded one, the slope that of the identity.
            moved = task.quantizer.activation(layer, formats[0])(values, axis) - values
            inputs = inputs + moved
        watched = own_use(inputs)
        if watched.is_leaf:
            leaves.append(watched)

        def on_gradient(gradient: Tensor) -> None:
            for fmt in formats:
                moved = values - task.quantizer.activation(layer, fmt)(values, axis)
                product = gradient * moved
                if elementwise:
                    product = product.abs()
                earlier = products.get((layer, fmt), 0.0)
                products[layer, fmt] = earlier + float(product.sum(dtype=torch.float64))

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
