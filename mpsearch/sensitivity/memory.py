"""Memory of scoring: how large batches may be under a limit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mpsearch.errors import InputError
from mpsearch.models.dataset import DataSet
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.sensitivity.differentiation import differentiated

__all__ = ["bytes_per_input", "fitting"]


def bytes_per_input(model: nn.Module, data: DataSet) -> int:
    """Measure what a backward pass through one input has to keep.

    Args:
        model: The model; run once, in evaluation mode.
        data: Its first input is run.

    Returns:
        Bytes of the distinct tensors that autograd saves, without parameters and buffers.
    """
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            seen[address] = max(seen.get(address, 0), tensor.numel() * tensor.element_size())
        return tensor

    weights = [p for p in model.parameters() if p.is_floating_point()]
    with (
        differentiated(weights),
        evaluation_mode(model),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        output = forward(model, data.inputs[:1])
        # The storages stay alive with the output's graph, so that no address is used twice.
        total = sum(seen.values()) + output.numel() * output.element_size()
        del output
    return total


def fitting(
    model: nn.Module, data: DataSet, limit: int, held: float
) -> tuple[DataSet, tuple[str, ...]]:
    """Cut batches so that scoring one fits into memory.

    Args:
        model: The model.
        data: The data.
        limit: Most bytes to hold beside the model and its data.
        held: How many times the saved tensors of a batch the estimator holds at once.

    Returns:
        The data with batches as large as they were, or smaller; and what to tell the reader, where
        not even a batch of one input fits.

    Raises:
        InputError: The limit is not positive.
    """
    if limit <= 0:
        raise InputError(f"memory limit {limit} B must be positive")
    needed = max(1, int(bytes_per_input(model, data) * held))
    size = limit // needed
    notes: tuple[str, ...] = ()
    if size < 1:
        notes = (
            f"scoring one input needs about {needed / 2**20:.3g} MiB, more than the memory limit "
            f"of {limit / 2**20:.3g} MiB; it was scored one input at a time",
        )
    return replace(data, batch_size=min(data.batch_size, max(1, size))), notes
