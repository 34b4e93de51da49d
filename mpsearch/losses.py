"""Loss functions by name, and measuring a model's loss and task metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, InputError, ModelError, UnknownNameError
from mpsearch.models.dataset import Batch
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.schemas import Measurement

__all__ = ["Loss", "as_loss", "known_losses", "measure"]

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss and the metric people read beside it.

    Attributes:
        name: How it is called in reports.
        function: Output and target to a scalar, the mean over the batch.
        metric_name: Name of the metric, or None.
        metric: Output and target to a score of every input `[batch]`, or None.
    """

    name: str
    function: LossFunction
    metric_name: str | None = None
    metric: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Compute the mean loss of a batch.

        Args:
            output: What the model returned.
            target: What it should have been.

        Returns:
            A scalar.

        Raises:
            DataError: There is no target, or it does not fit the output.
        """
        if target is None:
            raise DataError(f"the loss {self.name} needs targets, and the data has none")
        try:
            return self.function(output, target)
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(
                f"targets of shape {tuple(target.shape)} ({target.dtype}) do not fit outputs of "
                f"shape {tuple(output.shape)} under {self.name}: {str(error).splitlines()[0]}"
            ) from error


def _correct(output: Tensor, target: Tensor) -> Tensor:
    hits = (output.argmax(dim=1) == target).double()
    return hits.flatten(1).mean(dim=1) if hits.ndim > 1 else hits


_LOSSES = {
    "cross_entropy": Loss("cross_entropy", nn.functional.cross_entropy, "accuracy", _correct),
    "mse": Loss("mse", nn.functional.mse_loss),
}


def known_losses() -> list[str]:
    """List the losses that have a name.

    Returns:
        Names that `as_loss` accepts.
    """
    return sorted(_LOSSES)


def as_loss(loss: str | LossFunction | Loss) -> Loss:
    """Turn what the caller gave into a loss.

    Args:
        loss: A name, a function of output and target that returns the batch mean, or a Loss.

    Returns:
        The loss.

    Raises:
        UnknownNameError: No loss has this name.
        InputError: Not a function.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in _LOSSES:
            raise UnknownNameError("loss", loss, _LOSSES)
        return _LOSSES[loss]
    if not callable(loss):
        raise InputError(f"a loss is a name or a function, not {type(loss).__name__}")
    return Loss(getattr(loss, "__name__", type(loss).__name__), loss)


def measure(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Measurement:
    """Measure mean loss and metric over batches, weighted by batch size, in float64.

    Args:
        model: The model; run in evaluation mode without gradients.
        batches: Inputs and targets.
        loss: The loss, with its metric.

    Returns:
        Loss and metric over all inputs.

    Raises:
        DataError: There is no batch.
        ModelError: The loss is NaN or infinite.
    """
    losses: list[float] = []
    scores: list[float] = []
    count = 0
    with torch.no_grad(), evaluation_mode(model):
        for inputs, target in batches:
            output = forward(model, inputs)
            losses.append(float(loss(output.double(), target)) * len(inputs))
            if loss.metric is not None and target is not None:
                scores.append(float(loss.metric(output, target).sum()))
            count += len(inputs)
    if not count:
        raise DataError("there is no input to measure on")
    value = math.fsum(losses) / count
    if not math.isfinite(value):
        raise ModelError(f"the model's {loss.name} is {value} on this data")
    return Measurement(loss=value, metric=math.fsum(scores) / count if scores else None)
