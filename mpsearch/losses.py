"""Loss functions by name, and measuring a model's loss and task metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, InputError, ModelError, UnknownNameError
from mpsearch.models.dataset import Batch, DataSet
from mpsearch.models.running import evaluation_mode, forward
from mpsearch.schemas import Measurement

__all__ = ["Loss", "Tally", "as_loss", "known_losses", "mean_of", "measure", "with_float_outputs"]

LossFunction = Callable[[Tensor, Tensor], Tensor]

IGNORED = -100
"""Target that counts for nothing, as in torch's cross entropy."""


@dataclass(frozen=True)
class Loss:
    """A loss and the metric people read beside it.

    Attributes:
        name: How it is called in reports.
        function: Output and target to a scalar, the mean over the batch.
        metric_name: Name of the metric, or None.
        metric: Output and target to a score of every input `[batch]`, or None.
        metric_of_loss: Mean loss over all data to the metric, for metrics that are no mean of
            their own, such as perplexity; or None.
        higher_is_better: Whether a larger metric is a better one.
        terms: Output and target to the number of terms that `function` takes the mean of, where
            that is not the number of inputs: tokens, pixels. Weights the batches.
        target: What the output is compared with: the targets of the data, or the output of the
            float model (see `with_float_outputs`).
    """

    name: str
    function: LossFunction
    metric_name: str | None = None
    metric: Callable[[Tensor, Tensor], Tensor] | None = None
    metric_of_loss: Callable[[float], float] | None = None
    higher_is_better: bool = True
    terms: Callable[[Tensor, Tensor], int] | None = None
    target: Literal["data", "float_output"] = "data"

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


def _class_terms(_: Tensor, target: Tensor) -> int:
    # Targets may be class probabilities, one row per input; those are never ignored.
    return len(target) if target.is_floating_point() else int((target != IGNORED).sum())


def _next_token(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of every token given those before it.

    Args:
        output: Logits `[batch, tokens, vocabulary]`.
        target: Token ids `[batch, tokens]`, the inputs themselves; -100 counts for nothing.

    Returns:
        Mean over the tokens, in nats.

    Raises:
        ValueError: The shapes do not belong together.
    """
    if output.ndim != 3 or output.shape[:2] != target.shape:
        raise ValueError("logits [batch, tokens, vocabulary] and token ids [batch, tokens] needed")
    return nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def _token_terms(_: Tensor, target: Tensor) -> int:
    return int((target[:, 1:] != IGNORED).sum())


def _divergence(class_axis: int) -> LossFunction:
    def divergence(output: Tensor, reference: Tensor) -> Tensor:
        _same_shape(output, reference)
        # In float64 and from logits, so that distributions that differ by rounding alone give a
        # small number and not cancelled digits.
        found = output.double().log_softmax(class_axis)
        wanted = reference.double().log_softmax(class_axis)
        # Both sum to one, so that p (log p - log q) may be written q - p - p d with d = log q -
        # log p: no term is negative then, and p (e^d - 1 - d) keeps its digits where d is small.
        p, d = wanted.exp(), found - wanted
        near = d.clamp(max=1.0)
        terms = torch.where(d < 1.0, p * (near.expm1() - near), found.exp() - p - p * d)
        return terms.sum(class_axis).mean()

    return divergence


def _agreement(class_axis: int) -> Callable[[Tensor, Tensor], Tensor]:
    def agreement(output: Tensor, reference: Tensor) -> Tensor:
        same = (output.argmax(class_axis) == reference.argmax(class_axis)).double()
        return same.flatten(1).mean(1) if same.ndim > 1 else same

    return agreement


def _noise_to_signal(output: Tensor, reference: Tensor) -> Tensor:
    _same_shape(output, reference)
    signal = reference.double().flatten(1).square().sum(1)
    noise = (output.double() - reference.double()).flatten(1).square().sum(1)
    return (noise / signal).mean()


def _same_shape(output: Tensor, reference: Tensor) -> None:
    if output.shape != reference.shape or not reference.is_floating_point():
        raise ValueError("the float model's output is needed as target; see with_float_outputs")


def _decibel(ratio: float) -> float:
    return math.inf if ratio <= 0 else -10 * math.log10(ratio)


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < math.log(1e300) else math.inf


_LOSSES = {
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy",
            nn.functional.cross_entropy,
            "accuracy",
            _correct,
            terms=_class_terms,
        ),
        Loss("mse", nn.functional.mse_loss),
        Loss(
            "next_token",
            _next_token,
            "perplexity",
            metric_of_loss=_perplexity,
            higher_is_better=False,
            terms=_token_terms,
        ),
        Loss("kl_to_float", _divergence(1), "agreement", _agreement(1), target="float_output"),
        Loss(
            "token_kl_to_float",
            _divergence(-1),
            "agreement",
            _agreement(-1),
            target="float_output",
        ),
        Loss(
            "noise_to_signal",
            _noise_to_signal,
            "sqnr_db",
            metric_of_loss=_decibel,
            target="float_output",
        ),
    )
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


def with_float_outputs(model: nn.Module, data: DataSet) -> DataSet:
    """Make the outputs of the float model the targets, for losses that compare with it.

    Args:
        model: The float model; run in evaluation mode without gradients.
        data: The data; its targets are not used.

    Returns:
        The same inputs with the model's outputs as targets, in both parts.
    """

    def outputs(batches: Iterable[Batch]) -> Tensor:
        with torch.no_grad(), evaluation_mode(model):
            return torch.cat([forward(model, inputs) for inputs, _ in batches])

    held_out = None
    if data.held_out_inputs is not None:
        held_out = outputs(data.verification_batches())
    return replace(data, targets=outputs(data.batches()), held_out_targets=held_out, _digest=[])


class Tally:
    """Adds up loss and metric over batches, in float64.

    Attributes:
        parts: Sum of the loss over the terms of each batch, and their number; `mean_of` makes the
            mean loss of them.
    """

    def __init__(self, loss: Loss) -> None:
        """Start at nothing.

        Args:
            loss: The loss, with its metric.
        """
        self._loss = loss
        self.parts: list[tuple[float, int]] = []
        self._scores: list[float] = []
        self._inputs = 0

    def add(self, inputs: Tensor, output: Tensor, target: Tensor | None) -> None:
        """Count one batch.

        Args:
            inputs: The batch, `[batch, ...]`.
            output: What the model returned for it.
            target: What the loss compares with.
        """
        loss = self._loss
        mean = float(loss(output.double(), target))
        terms = len(inputs)
        if loss.terms is not None and target is not None:
            terms = loss.terms(output, target)
        # The mean over nothing is no number.
        self.parts.append((mean * terms if terms else 0.0, terms))
        if loss.metric is not None and target is not None:
            self._scores.append(float(loss.metric(output, target).sum()))
        self._inputs += len(inputs)

    def measurement(self) -> Measurement:
        """Divide.

        Returns:
            Mean loss and metric over everything that was counted.
        """
        value = mean_of(self.parts, self._loss)
        metric = math.fsum(self._scores) / self._inputs if self._scores else None
        if self._loss.metric_of_loss is not None:
            found = self._loss.metric_of_loss(value)
            metric = found if math.isfinite(found) else None
        return Measurement(loss=value, metric=metric)


def mean_of(parts: Iterable[tuple[float, int]], loss: Loss) -> float:
    """Compute a mean loss from what was counted, batch by batch.

    Args:
        parts: As in `Tally`, of all batches in order.
        loss: The loss, for messages.

    Returns:
        The mean over all terms, rounded once.

    Raises:
        DataError: Nothing was counted.
        ModelError: The loss is NaN or infinite.
    """
    counted = list(parts)
    terms = sum(count for _, count in counted)
    if not terms:
        raise DataError("there is no input to measure on")
    value = math.fsum(total for total, _ in counted) / terms
    if not math.isfinite(value):
        raise ModelError(f"the model's {loss.name} is {value} on this data")
    return value


def measure(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Measurement:
    """Measure mean loss and metric over batches, weighted by their terms, in float64.

    Args:
        model: The model; run in evaluation mode without gradients.
        batches: Inputs and targets.
        loss: The loss, with its metric.

    Returns:
        Loss and metric over all inputs.
    """
    tally = Tally(loss)
    with torch.no_grad(), evaluation_mode(model):
        for inputs, target in batches:
            tally.add(inputs, forward(model, inputs), target)
    return tally.measurement()
