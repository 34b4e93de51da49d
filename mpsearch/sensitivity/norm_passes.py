"""Backward passes that give the squared norm of every input's own weight gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.quantize import layer_module
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.sample_gradients import SampleNorms
from mpsearch.sensitivity.taps import Call, frozen, tapped

__all__ = ["NormPasses", "norm_passes"]


@dataclass
class NormPasses:
    """Forward passes, and backward passes that give squared gradient norms layer by layer.

    Attributes:
        task: Model and layers.
        collector: Computes the norms.
        leaves: Tensors that the graph starts from.
        restart: Forgets the last forward pass.
        arrived: Norms of the last backward pass.
    """

    task: ScoringTask
    collector: SampleNorms
    leaves: list[Tensor]
    restart: Callable[[], None]
    arrived: list[tuple[str, Tensor]] = field(default_factory=list)

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the model on a batch.

        Args:
            inputs: The batch.

        Returns:
            Its output.
        """
        self.restart()
        self.collector.batch = len(inputs)
        return forward(self.task.model, inputs)

    def backward(
        self, output: Tensor, vector: Tensor | None, keep: bool
    ) -> list[tuple[str, Tensor]]:
        """Differentiate what was computed of the last batch.

        Args:
            output: The output, or a loss made of it.
            vector: What the output's Jacobian is multiplied with; None for a scalar.
            keep: Whether another backward pass through the same graph follows.

        Returns:
            Layers with the squared norms of every input's own gradient, float64 `[batch]`.
        """
        self.arrived.clear()
        if output.requires_grad:
            torch.autograd.grad(output, self.leaves, vector, retain_graph=keep, allow_unused=True)
        return self.arrived


@contextmanager
def norm_passes(
    task: ScoringTask, on_input: Callable[[Call, Tensor], None] | None = None
) -> Iterator[NormPasses]:
    """Watch all layers of a task.

    Args:
        task: Model and layers.
        on_input: Called with every call of a layer and the gradient of its input; None: inputs are
            not differentiated.

    Yields:
        What runs and differentiates the model.

    Raises:
        InputError: A layer shares its weight with others.
    """
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
        yield NormPasses(task, collector, taps.leaves, taps.restart, arrived)
