"""Activation memory: the peak over a schedule, as one row of costs for every step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsearch.formats import Format
from mpsearch.hardware.schedule import Schedule
from mpsearch.menu import Menu
from mpsearch.schemas import PeakStep

__all__ = ["EAGER_SOURCE", "PEAK_SOURCE", "activation_steps", "stored_bits"]

PEAK_SOURCE = (
    "largest sum over the operations of one forward pass of the tensors that are still needed; "
    "each in the activation format of the layer that produced it"
)
EAGER_SOURCE = (
    "largest sum over the operations of one forward pass of the tensors that the running Python "
    "model still holds; each in the activation format of the layer that produced it"
)


def stored_bits(activation: Format) -> float | None:
    """Compute what a value of a tensor takes in memory.

    Args:
        activation: Format of the activations.

    Returns:
        Bits, with the scales of blocks; None where the tensor stays as the float model stores it.
        One scale per tensor or channel is part of the program, not of the tensor.
    """
    if activation.is_float:
        return None
    per_block = activation.scale_bits / activation.block if activation.block else 0.0
    return activation.bits + per_block


def activation_steps(
    schedule: Schedule, menu: Menu, *, as_run: bool = False
) -> tuple[list[PeakStep], float]:
    """Compile a schedule to rows: what every step holds, for every group and option.

    Args:
        schedule: The operations and the tensors they make.
        menu: Groups and options.
        as_run: Count a tensor until the running model lets go of it, not until its last use.

    Returns:
        The steps that can be the peak under some allocation (a step that holds no more of anything
        than another is left out), and the peak of the float model, in bytes.
    """
    rows = {name: row for row, members in enumerate(menu.groups.values()) for name in members}
    count = len(schedule.steps)
    base = np.zeros(count)
    # What a group holds in a step: values, and bytes as the float model stores them.
    held = np.zeros((count, len(menu.groups), 2))
    for tensor in schedule.tensors:
        end = tensor.released if as_run else tensor.last_use
        span = slice(max(tensor.born, 0), end + 1)
        row = rows.get(tensor.producer or "")
        if row is None or not tensor.is_float:
            base[span] += tensor.size
        else:
            held[span, row] += (tensor.values, tensor.size)
    bits = [stored_bits(option.activation) for option in menu.options]
    names = list(menu.groups)
    steps = [
        PeakStep(
            name=schedule.steps[step],
            base=float(base[step]),
            cost={
                names[row]: _prices(float(held[step, row, 0]), float(held[step, row, 1]), bits)
                for row in np.flatnonzero(held[step, :, 0])
            },
        )
        for step in _undominated(base, held)
    ]
    return steps, float(schedule.peak(as_run=as_run))


def _prices(values: float, size: float, bits: list[float | None]) -> list[float]:
    return [size if each is None else values * each / 8 for each in bits]


def _undominated(base: NDArray[np.float64], held: NDArray[np.float64]) -> list[int]:
    """Return the steps of which no other holds at least as much of everything."""
    flat = np.concatenate([base[:, None], held.reshape(len(base), -1)], axis=1)
    kept: list[int] = []
    # A step can only be dominated by one that is at least as large in sum.
    for step in np.argsort(-flat.sum(axis=1), kind="stable").tolist():
        if not kept or not (flat[step] <= flat[kept]).all(axis=1).any():
            kept.append(step)
    return sorted(kept)
