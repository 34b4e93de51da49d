"""Scores from the feature maps of one forward pass: their entropy, and how alike layers are."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.formats import Format
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.taps import Call, refuse_rows, tapped, watch_inputs
from mpsearch.sensitivity.weight_statistics import BINS, histogram_entropy

__all__ = ["Entropy", "Orthogonality"]

FLOAT_BITS = 32.0


class Entropy(Estimator):
    """λ · (bits of entropy lost in the input and weight) - (1 - λ) · (share of BOPs saved).

    Entropies are those of 256-bin histograms over the range before quantization, summed over the
    input feature map and the weight. With λ = 1, the default, what an option saves is left to the
    solver's budgets.

    Source: after QuantMCU's value-driven score (Liang et al. 2024), which is negated here so that a
    higher score is worse.
    """

    name: ClassVar[str] = "entropy"
    scores_activations: ClassVar[bool] = True

    def __init__(self, balance: float = 1.0) -> None:
        """Choose λ.

        Args:
            balance: Weight of the entropy against the operations saved, 0 to 1.

        Raises:
            ValueError: Outside 0 to 1.
        """
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be 0 to 1, not {balance}")
        self._balance = balance

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data; its loss is not read.

        Returns:
            Scores without randomness; `statistics` holds `input_entropy` of every layer.
        """
        histograms = _InputHistograms(task)
        with torch.no_grad(), evaluation_mode(task.model), watch_inputs(task, histograms.watch):
            histograms.run()
        score = np.zeros((len(task.layers), len(task.options)))
        operations = max(1, sum(layer.macs for layer in task.layers)) * FLOAT_BITS**2
        entropy = {}
        for row, layer in enumerate(task.layers):
            entropy[layer.name] = histograms.entropy(row, None)
            weight = task.quantizer.original(layer.name)
            low, high = float(weight.min()), float(weight.max())
            whole = histogram_entropy(weight, low, high)
            for column, option in enumerate(task.options):
                if option.is_float:
                    continue
                lost = 0.0
                if not option.weight.is_float:
                    rounded = task.quantizer.weight(layer.name, option.weight)
                    lost += whole - histogram_entropy(rounded.clamp(low, high), low, high)
                if not option.activation.is_float:
                    lost += entropy[layer.name] - histograms.entropy(row, option.activation)
                saved = layer.macs * (FLOAT_BITS**2 - option.weight.bits * option.activation.bits)
                score[row, column] = self._balance * lost - (1 - self._balance) * saved / operations
        return Scores(score, np.zeros_like(score), statistics={"input_entropy": entropy})


class _InputHistograms:
    """Histograms of layer inputs before and after rounding, over calibrated ranges."""

    def __init__(self, task: ScoringTask) -> None:
        self._task = task
        self._range: dict[int, tuple[float, float]] = {}
        self._counts: dict[tuple[int, Format | None], Tensor] = {}
        self._counting = False

    def run(self) -> None:
        """Find the ranges in one pass over the data and count in a second."""
        total = 2 * math.ceil(len(self._task.data) / self._task.data.batch_size)
        done = 0
        for self._counting in (False, True):
            for inputs, _ in self._task.data.batches():
                if not torch.isfinite(forward(self._task.model, inputs)).all():
                    raise ModelError("the model's output is nan or infinite on this data")
                done += 1
                self._task.on_progress(Progress("profile", done, total, "feature maps"))

    def watch(self, row: int, values: Tensor, axis: int) -> None:
        if not values.numel():
            return  # an expert that nothing was sent to
        if not self._counting:
            low, high = (float(x) for x in torch.aminmax(values))
            seen = self._range.get(row, (low, high))
            self._range[row] = min(low, seen[0]), max(high, seen[1])
            return
        low, high = self._range[row]
        if not high > low:
            return
        for fmt in (None, *self._task.activation_formats):
            rounded = values
            if fmt is not None:
                layer = self._task.layers[row].name
                rounded = self._task.quantizer.activation(layer, fmt)(values, axis)
            flat = rounded.float().clamp(low, high).flatten()
            counts = torch.histc(flat, BINS, low, high).double()
            self._counts[row, fmt] = counts + self._counts.get((row, fmt), torch.zeros(()))

    def entropy(self, row: int, fmt: Format | None) -> float:
        """Compute the entropy of a layer's input at a format, in bits; 0 where it has none."""
        counts = self._counts.get((row, fmt))
        if counts is None:
            return 0.0
        share = counts[counts > 0] / counts.sum()
        return float(-(share * share.log2()).sum())


class Orthogonality(Estimator):
    """θ_i · (32 - bits of the weight), with θ_i = exp(-β γ_i) for γ_i the likeness to other layers.

    γ_i = Σ_{j≠i} <K_i, K_j> / (||K_i|| ||K_j||), with K_i = F_i F_iᵀ over the outputs F_i of layer
    i, one row per input. OMPQ maximises Σ θ_i b_i: layers that are unlike all others get the bits.

    Source: OMPQ (Ma et al. 2023, arXiv 2109.07865).
    """

    name: ClassVar[str] = "orthogonality"
    scores_activations: ClassVar[bool] = False

    def __init__(self, beta: float = 1.0, inputs: int = 64) -> None:
        """Choose the steepness and the number of inputs.

        Args:
            beta: β.
            inputs: The first so many inputs are run.

        Raises:
            ValueError: Fewer than 2 inputs, or β not positive.
        """
        if inputs < 2 or beta <= 0:
            raise ValueError(f"inputs must be at least 2 and beta > 0, not {inputs} and {beta}")
        self._beta = beta
        self._inputs = inputs

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data; its loss is not read.

        Returns:
            Scores without randomness; `statistics` holds `likeness` (γ) and `orthogonality` (θ).

        Raises:
            ModelError: The output is not finite.
        """
        # All inputs in one pass: every pair of them meets in the products.
        batch = task.data.inputs[: self._inputs]
        grams: dict[str, Tensor] = {}

        def on_call(call: Call, output: Tensor) -> None:
            refuse_rows(call, len(batch), len(output))
            features = output.detach().double().reshape(len(output), -1)
            gram = features @ features.T
            grams[call.layer] = gram + grams.get(call.layer, torch.zeros_like(gram))

        with torch.no_grad(), evaluation_mode(task.model), tapped(task, on_call=on_call):
            if not torch.isfinite(forward(task.model, batch)).all():
                raise ModelError("the model's output is nan or infinite on this data")
        task.on_progress(Progress("profile", 1, 1, "feature maps"))
        absent = torch.zeros(len(batch), len(batch), dtype=torch.float64, device=batch.device)
        unit = torch.stack(
            [_unit(grams.get(layer.name, absent)).flatten() for layer in task.layers]
        )
        likeness: NDArray[np.float64] = (unit @ unit.T).sum(dim=1).cpu().numpy() - 1
        theta = np.exp(-self._beta * likeness)
        saved = [0.0 if o.weight.is_float else FLOAT_BITS - o.weight.bits for o in task.options]
        names = [layer.name for layer in task.layers]
        score = theta[:, None] * np.array(saved)
        return Scores(
            score,
            np.zeros_like(score),
            statistics={
                "likeness": dict(zip(names, likeness.tolist(), strict=True)),
                "orthogonality": dict(zip(names, theta.tolist(), strict=True)),
            },
        )


def _unit(gram: Tensor) -> Tensor:
    norm = float(torch.linalg.matrix_norm(gram))
    return gram / norm if norm > 0 else gram
