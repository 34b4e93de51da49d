"""From a trace per layer to a score per option."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsearch.quantize import weight_deviation
from mpsearch.sensitivity.protocol import Scores, ScoringTask

__all__ = ["squared_errors", "trace_scores"]


def squared_errors(task: ScoringTask) -> NDArray[np.float64]:
    """Compute ||Q(W_i) - W_i||² for every layer and option.

    Args:
        task: Layers and options.

    Returns:
        float64, layers x options; 0 where the weight stays in float.
    """
    found = np.zeros((len(task.layers), len(task.options)))
    for row, layer in enumerate(task.layers):
        for column, option in enumerate(task.options):
            if not option.weight.is_float:
                deviation = weight_deviation(task.quantizer, layer, option.weight)
                found[row, column] = float(deviation.double().square().sum())
    return found


def trace_scores(
    task: ScoringTask,
    name: str,
    trace: NDArray[np.float64],
    stderr: NDArray[np.float64],
    float_loss: float | None = None,
    warnings: tuple[str, ...] = (),
) -> Scores:
    """Score by mean trace times squared error: Tr(C_i)/n_i · ||Q(W_i) - W_i||².

    Args:
        task: Layers and options.
        name: What the trace is called in the statistics.
        trace: Trace of the curvature of every layer.
        stderr: Standard errors of the traces.
        float_loss: Loss of the unquantized model, where it was measured.
        warnings: What the reader of the scores should know.

    Returns:
        The scores, with trace and standard error of every layer in `statistics`.
    """
    sizes = np.array([layer.weights for layer in task.layers], dtype=np.float64)
    moved = squared_errors(task) / sizes[:, None]
    names = [layer.name for layer in task.layers]
    return Scores(
        trace[:, None] * moved,
        stderr[:, None] * moved,
        statistics={
            name: dict(zip(names, trace.tolist(), strict=True)),
            f"{name}_stderr": dict(zip(names, stderr.tolist(), strict=True)),
        },
        warnings=warnings,
        float_loss=float_loss,
    )
