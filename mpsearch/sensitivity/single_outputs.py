"""The model's outputs with every single choice, from which any part of the inputs is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.losses import Loss
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.shards import measure_outputs

__all__ = ["SingleOutputs", "inputs_kept", "offered_places", "outputs_fit", "single_outputs"]

OUTPUT_MEMORY = 2**30
"""Bytes of outputs that are kept where the task sets no limit."""


@dataclass(frozen=True)
class SingleOutputs:
    """Outputs of the float model, and of the model with one layer at one option.

    Attributes:
        places: Positions of layer and option of every choice.
        outputs: float32 `[1 + choices, inputs, ...]`, the float model's first.
        losses: Measured on all inputs, float64 `[1 + choices]`.
        loss: What was measured.
        targets: What the outputs are compared with, `[inputs, ...]`; None: with the float model's.
    """

    places: Sequence[tuple[int, int]]
    outputs: NDArray[np.float32]
    losses: NDArray[np.float64]
    loss: Loss
    targets: Tensor | None

    def part(self, rows: NDArray[np.int64]) -> SingleOutputs:
        """Take some of the inputs.

        Args:
            rows: Their positions.

        Returns:
            Their outputs, and the losses on them alone.
        """
        index = torch.from_numpy(rows)
        outputs = self.outputs[:, rows]
        reference = torch.from_numpy(outputs[0]) if self.targets is None else self.targets[index]
        target = reference.double() if reference.is_floating_point() else reference
        losses = [float(self.loss(torch.from_numpy(output).double(), target)) for output in outputs]
        targets = None if self.targets is None else self.targets[index]
        return SingleOutputs(self.places, outputs, np.array(losses), self.loss, targets)


def single_outputs(task: ScoringTask, loss: Loss, kept: int) -> SingleOutputs:
    """Run every single choice once.

    Args:
        task: Model, layers, options, data.
        loss: What to measure.
        kept: How many inputs' outputs to keep, from the first on.

    Returns:
        Losses of all inputs, and outputs.

    Raises:
        ModelError: An output is NaN or infinite.
    """
    places = offered_places(task)
    choices = [{task.layers[row].name: task.options[column]} for row, column in places]
    found = measure_outputs(
        task, [{}, *choices], loss, f"{loss.name} and outputs of single layers", kept
    )
    if not np.isfinite(found.outputs).all():
        raise ModelError("the model's output is nan or infinite on this data")
    given = None if loss.target == "float_output" else task.data.targets
    targets = None if given is None else given[:kept].cpu()
    return SingleOutputs(places, found.outputs, found.losses, loss, targets)


def offered_places(task: ScoringTask) -> list[tuple[int, int]]:
    """List every layer with every option but `float`.

    Args:
        task: Layers and options.

    Returns:
        Positions of layer and option, layer by layer.
    """
    return [
        (row, column)
        for row in range(len(task.layers))
        for column, option in enumerate(task.options)
        if not option.is_float
    ]


def inputs_kept(task: ScoringTask) -> tuple[int, int]:
    """Decide how many inputs' outputs fit into memory.

    Args:
        task: Model, layers, options, data, memory limit.

    Returns:
        The number, at least 1 and at most all; and the bytes that outputs may take.
    """
    with torch.no_grad(), evaluation_mode(task.model):
        output = forward(task.model, task.data.inputs[:1])
    limit = OUTPUT_MEMORY if task.memory_limit is None else task.memory_limit // 2
    fitting = limit // (4 * output.numel() * (len(offered_places(task)) + 1))
    return min(len(task.data), max(1, fitting)), limit


def outputs_fit(task: ScoringTask) -> bool:
    """Tell whether the outputs of all choices on all inputs fit into memory.

    Args:
        task: Model, layers, options, data, memory limit.

    Returns:
        Whether one measurement serves all parts of the inputs.
    """
    return inputs_kept(task)[0] == len(task.data)
