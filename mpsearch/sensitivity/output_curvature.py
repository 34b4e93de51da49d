"""Square roots of a loss's second derivative in the model's output, drawn at random or complete."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.losses import Loss

__all__ = ["Draw", "class_axis", "complete_factors", "draw_factor", "draw_generator"]

Draw = Literal["signs", "labels"]
"""How factors are drawn: from random signs over all classes, or from one label of the model."""

CLASSES = {"cross_entropy": 1, "kl_to_float": 1, "token_kl_to_float": -1, "next_token": -1}
"""Axis of the classes in the output, for the losses whose model is a categorical distribution."""


def class_axis(loss: Loss) -> int | None:
    """Find the axis of the classes in the outputs that a loss reads.

    Args:
        loss: The loss.

    Returns:
        The axis, or None for a squared error, which has none.

    Raises:
        InputError: The loss's Gauss-Newton matrix is not known.
    """
    if loss.name == "mse":
        return None
    if loss.name not in CLASSES:
        raise InputError(
            f"the Gauss-Newton matrix of the loss {loss.name} is not known here (only of "
            f"{', '.join(sorted([*CLASSES, 'mse']))}); use hessian_trace, which takes any loss"
        )
    return CLASSES[loss.name]


def draw_generator(seed: int, draw: int, batch: int) -> torch.Generator:
    """Make the source of one draw on one batch, which is the same wherever that is computed.

    Args:
        seed: The user's seed.
        draw: Number of the draw.
        batch: Number of the batch.

    Returns:
        A generator on the CPU.
    """
    sequence = np.random.SeedSequence((seed % 2**64, draw, batch))
    (state,) = sequence.generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def draw_factor(output: Tensor, loss: Loss, generator: torch.Generator, draw: Draw) -> Tensor:
    """Draw v with E[v vᵀ] = ∂²l/∂output² for every input's own mean loss l.

    For a categorical model with probabilities p the second derivative is diag(p) - p pᵀ.
    `labels`: v = p - e_y with y drawn from p, the gradient that this label would give (Martens
    2020, "New insights and perspectives on the natural gradient method": its mean outer product is
    the Fisher matrix, which equals the Gauss-Newton matrix here). `signs`: v = Σ_c √p_c s_c (e_c -
    p) with independent signs s_c has the same mean outer product, without the rare labels that
    dominate the variance of the first when the model is sure of itself.

    Args:
        output: What the model returned, `[batch, ...]`.
        loss: Whose second derivative is wanted.
        generator: Source of randomness, on the CPU.
        draw: How.

    Returns:
        v, in the shape of the output; inputs are independent.
    """
    axis = class_axis(loss)
    if axis is None:
        return _signs(output.shape, generator).to(output) * math.sqrt(2 / _size(output))
    p = torch.softmax(output.detach().double(), dim=axis).movedim(axis, -1)
    positions = _positions(p)
    if loss.name == "next_token":
        positions -= 1
    if draw == "labels":
        flat = p.reshape(-1, p.shape[-1])
        labels = torch.multinomial(flat.cpu(), 1, generator=generator).to(p.device)
        v = flat.scatter_add(1, labels, -torch.ones_like(flat[:, :1])).reshape(p.shape)
    else:
        weighted = p.sqrt() * _signs(p.shape, generator).to(p)
        v = weighted - p * weighted.sum(dim=-1, keepdim=True)
    if loss.name == "next_token":
        v[:, -1] = 0  # nothing is compared with what follows the last token
    return (v / math.sqrt(max(1, positions))).movedim(-1, axis).to(output)


def complete_factors(output: Tensor, loss: Loss) -> list[Callable[[], Tensor]]:
    """List factors v_k with Σ_k v_k v_kᵀ = ∂²l/∂output² per position, one for every class.

    Args:
        output: What the model returned, `[batch, ...]`, with one position per input.
        loss: Whose second derivative is wanted.

    Returns:
        Functions that each make one factor, in the shape of the output.

    Raises:
        InputError: An input has several positions, whose factors would have to be crossed.
    """
    axis = class_axis(loss)
    if output.ndim != 2:
        raise InputError(
            f"draws='exact' needs outputs [batch, classes], not of shape {tuple(output.shape)}; "
            "give a number of draws"
        )
    if axis is None:
        basis = torch.eye(output.shape[1]) * math.sqrt(2 / _size(output))
        return [lambda row=row: row.to(output).expand_as(output) for row in basis]  # type: ignore[misc]
    p = torch.softmax(output.detach().double(), dim=1)

    def factor(c: int) -> Tensor:
        v = -p * p[:, c : c + 1].sqrt()
        v[:, c] += p[:, c].sqrt()
        return v.to(output)

    return [lambda c=c: factor(c) for c in range(p.shape[1])]  # type: ignore[misc]


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _size(output: Tensor) -> int:
    return max(1, output.numel() // len(output))


def _positions(p: Tensor) -> int:
    return max(1, p.numel() // (len(p) * p.shape[-1]))
