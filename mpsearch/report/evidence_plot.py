"""Picture of a comparison of estimators: agreement with measurements against time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mpsearch.report.plots import _figure

if TYPE_CHECKING:
    from mpsearch.sensitivity.evidence import Comparison

__all__ = ["evidence_png"]


def evidence_png(comparison: Comparison) -> bytes:
    """Draw Spearman's correlation with measured whole allocations against the time to score.

    Args:
        comparison: What to draw.

    Returns:
        A PNG.
    """
    figure = _figure(7.0, 4.5)
    axes = figure.add_subplot()
    for row in comparison.rows:
        if row.whole_spearman is None:
            continue
        axes.plot(max(row.seconds, 1e-3), row.whole_spearman, "o", color="tab:blue")
        axes.annotate(
            row.estimator,
            (max(row.seconds, 1e-3), row.whole_spearman),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.set_xlabel("seconds to score")
    axes.set_ylabel("Spearman, random whole allocations")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
