"""From the scores of layers to those of groups, and what to refuse or warn of on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InputError, ModelError
from mpsearch.formats import Option
from mpsearch.menu import Menu
from mpsearch.sensitivity.catalog import known as known_estimators
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask

__all__ = ["low_bit_warning", "refuse_ties", "sum_over_groups"]


def refuse_ties(scorer: Estimator, menu: Sequence[Option]) -> None:
    """Refuse options that differ only where the estimator does not look.

    Args:
        scorer: The estimator.
        menu: The options.

    Raises:
        InputError: Activation formats differ, and the estimator scores weights only.
    """
    if scorer.scores_activations:
        return
    kinds = {option.activation for option in menu if not option.is_float}
    if len(kinds) > 1:
        able = ", ".join(entry.name for entry in known_estimators() if entry.scores_activations)
        raise InputError(
            f"{scorer.name} scores weights only, and the options differ in the activation format "
            f"({', '.join(sorted(kind.name for kind in kinds))}): the cheaper would always win. "
            f"Offer one activation format, or use an estimator that scores activations: {able}"
        )


def low_bit_warning(scorer: Estimator, menu: Sequence[Option]) -> list[str]:
    """Warn where a Taylor score is trusted too far.

    Args:
        scorer: The estimator.
        menu: The options.

    Returns:
        A warning when options below 3 bits are scored by an expansion, nothing otherwise.
    """
    low = [o.name for o in menu if o.weight.bits < 3]
    if not low or not scorer.expands:
        return []
    return [
        f"{', '.join(low)}: below 3 bits a Taylor score such as {scorer.name} loses its meaning; "
        "measured_loss is safer"
    ]


def sum_over_groups(
    scores: Scores, task: ScoringTask, menu: Menu
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add up the scores of the layers of each group; standard errors add in quadrature.

    Args:
        scores: Scores of layers.
        task: What was scored.
        menu: The groups.

    Returns:
        Loss and standard error, float64, groups x options.

    Raises:
        ModelError: A score is NaN or infinite; names the layer and the option.
    """
    rows = {layer.name: row for row, layer in enumerate(task.layers)}
    broken = ~np.isfinite(scores.loss + scores.stderr)
    if broken.any():
        row, column = np.argwhere(broken)[0]
        raise ModelError(
            f"the score of {task.layers[row].name} at {task.options[column].name} is not finite"
        )
    members = [[rows[layer] for layer in layers] for layers in menu.groups.values()]
    loss = np.array([scores.loss[rows].sum(axis=0) for rows in members])
    stderr = np.array([np.sqrt((scores.stderr[rows] ** 2).sum(axis=0)) for rows in members])
    return loss, stderr
