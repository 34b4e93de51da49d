"""Measured sensitivity: quantize one layer, run the data, read the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.losses import Loss, as_loss
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.sensitivity.output_error import output_errors
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.shards import measure_choices
from mpsearch.sensitivity.single_outputs import (
    inputs_kept,
    offered_places,
    outputs_fit,
    single_outputs,
)
from mpsearch.sensitivity.taps import Call, tapped

__all__ = [
    "MeasuredKl",
    "MeasuredLoss",
    "Sqnr",
    "divergence",
    "single_layer_increases",
]


HARDLY_TRUE = 0.5
"""Share of the float model's loss from which gains are doubted; 1078 digits promise 0.15 of it and
keep the promise, 20 photos 1.19, which is more than all."""


class MeasuredLoss(Estimator):
    """L(layer i at option b, others in float) - L(float), one layer at a time.

    Source: CalibTIP (Hubara et al. 2021, arXiv 2006.10518) and AdaQuant's integer program, which
    raise increases to a small positive floor; here that is a setting and off by default, because a
    negative measurement is information too.
    """

    name: ClassVar[str] = "measured_loss"
    scores_activations: ClassVar[bool] = True

    def __init__(self, floor: float | None = None) -> None:
        """Choose the floor.

        Args:
            floor: Raise every increase to at least this; None keeps what was measured.
        """
        self._floor = floor

    def score(self, task: ScoringTask) -> Scores:
        """Measure every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Measured increases; nothing is random, so the standard errors are 0.
        """
        increase, reference = single_layer_increases(task, task.loss)
        if self._floor is not None:
            quantized = [not option.is_float for option in task.options]
            increase[:, quantized] = np.maximum(increase[:, quantized], self._floor)
        return Scores(
            increase,
            np.zeros_like(increase),
            warnings=_promises(increase, reference, len(task.data)),
            float_loss=reference,
        )


def _promises(increase: NDArray[np.float64], reference: float, inputs: int) -> tuple[str, ...]:
    """Warn of gains over the float model that cannot all be true."""
    gains = -float(np.minimum(increase.min(axis=1), 0).sum())
    if not gains > HARDLY_TRUE * reference > 0:
        return ()
    return (
        f"options that lower the loss on these {inputs} inputs promise to lower it by {gains:.3g} "
        f"together, of the float model's {reference:.3g}: an accident of few inputs, which a "
        "solver collects. Score on more inputs, by measured_kl or pairwise, or with floor=0",
    )


class MeasuredKl(Estimator):
    """KL(float output || output with layer i at option b), one layer at a time, without labels.

    Source: ZeroQ (Cai et al. 2020, arXiv 2001.00281), equation 3; NVIDIA ModelOpt's KL score.
    """

    name: ClassVar[str] = "measured_kl"
    scores_activations: ClassVar[bool] = True

    def score(self, task: ScoringTask) -> Scores:
        """Measure every layer at every option; see the class.

        Args:
            task: Model, layers, options, data; its loss is not read.

        Returns:
            Measured divergences; nothing is random, so the standard errors are 0.
        """
        found, _ = single_layer_increases(task, divergence(task))
        return Scores(found, np.zeros_like(found))

    def score_parts(self, task: ScoringTask, parts: Sequence[NDArray[np.int64]]) -> list[Scores]:
        """Score from parts of the inputs; one measurement serves all where the outputs fit.

        Args:
            task: As in `score`.
            parts: Positions of inputs.

        Returns:
            Scores from every part.
        """
        if not outputs_fit(task):
            return super().score_parts(task, parts)
        outputs = single_outputs(task, divergence(task), inputs_kept(task)[0])
        scores = []
        for rows in parts:
            part = outputs.part(rows)
            table = np.zeros((len(task.layers), len(task.options)))
            for (row, column), value in zip(part.places, part.losses[1:], strict=True):
                table[row, column] = value - part.losses[0]
            scores.append(Scores(table, np.zeros_like(table)))
        return scores


class Sqnr(Estimator):
    """Noise-to-signal ratio that layer i at option b leaves in the model's output.

    mean_n ||y_n,q - y_n||² / ||y_n||² over inputs n; `10^(-dB/10)` of the signal-to-quantization-
    noise ratio in decibel, so that more noise is a higher score.

    Source: AIMET's per-layer sensitivity analysis (Siddegowda et al. 2022, arXiv 2201.08442).
    """

    name: ClassVar[str] = "sqnr"
    scores_activations: ClassVar[bool] = True

    def __init__(self, at: Literal["output", "layer"] = "output") -> None:
        """Choose where noise is compared with the signal.

        Args:
            at: `output`: at the model's output, measured by one forward pass for every layer and
                option; `layer`: at the layer's own output, one pass in all.

        Raises:
            ValueError: Another place.
        """
        if at not in {"output", "layer"}:
            raise ValueError(f"at is 'output' or 'layer', not {at!r}")
        self._at = at

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data; its loss is not read.

        Returns:
            Noise-to-signal ratios; nothing is random, so the standard errors are 0.
        """
        if self._at == "layer":
            return _layer_ratios(task)
        found, _ = single_layer_increases(task, as_loss("noise_to_signal"))
        return Scores(found, np.zeros_like(found))


def divergence(task: ScoringTask) -> Loss:
    """Find the divergence from the float model that fits a model's output.

    Args:
        task: Its loss decides where it compares distributions itself; otherwise the output's shape.

    Returns:
        `token_kl_to_float` for sequence models, which put the classes last, else `kl_to_float`.
    """
    if task.loss.name in {"next_token", "token_kl_to_float"}:
        return as_loss("token_kl_to_float")
    if task.loss.name in {"cross_entropy", "kl_to_float"}:
        return as_loss("kl_to_float")
    with torch.no_grad(), evaluation_mode(task.model):
        output = forward(task.model, task.data.inputs[:1])
    return as_loss("token_kl_to_float" if output.ndim == 3 else "kl_to_float")


def single_layer_increases(task: ScoringTask, loss: Loss) -> tuple[NDArray[np.float64], float]:
    """Measure the loss increase of every layer at every option, all others in float.

    Args:
        task: Model, layers, options, data.
        loss: What to measure.

    Returns:
        Increases, float64, layers x options, 0 for `float`; and the loss of the float model.
    """
    places = offered_places(task)
    singles = [{task.layers[row].name: task.options[column]} for row, column in places]
    measured = measure_choices(task, [{}, *singles], loss, f"{loss.name} of single layers")
    increase = np.zeros((len(task.layers), len(task.options)))
    for (row, column), value in zip(places, measured[1:], strict=True):
        increase[row, column] = value - measured[0]
    return increase, float(measured[0])


def _layer_ratios(task: ScoringTask) -> Scores:
    """Compare total noise with total signal at every layer's own output."""
    rows = {layer.name: row for row, layer in enumerate(task.layers)}
    signal = np.zeros((len(rows), 1))
    noise = np.zeros((len(rows), len(task.options)))

    def on_call(call: Call, output: Tensor) -> None:
        row = rows[call.layer]
        signal[row] += float(output.double().square().sum())
        for column, error in enumerate(output_errors(task, call)):
            if error is not None:
                noise[row, column] += float(error.values.double().square().sum())

    with torch.no_grad(), evaluation_mode(task.model), tapped(task, on_call=on_call) as taps:
        for inputs, _ in task.data.batches():
            taps.restart()
            if not torch.isfinite(forward(task.model, inputs)).all():
                raise ModelError("the model's output is nan or infinite on this data")
    ratio = np.divide(noise, signal, out=np.zeros_like(noise), where=signal > 0)
    return Scores(ratio, np.zeros_like(ratio))
