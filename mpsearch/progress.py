"""Progress of long work, as values that any front end can show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["OnProgress", "Progress", "ignore_progress", "with_time_left"]


@dataclass(frozen=True)
class Progress:
    """How far one stage of the work has come.

    Attributes:
        stage: `load`, `profile`, `price`, `solve`, `verify`, `report` or `compare`.
        done: Steps finished.
        total: Steps in all.
        message: What is being done now.
        seconds_left: Expected time until the stage is finished, in seconds; None: not known yet.
    """

    stage: str
    done: int
    total: int
    message: str = ""
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]
"""Called after every step, from the thread that does the work."""


def ignore_progress(_: Progress) -> None:
    """Take progress reports and do nothing with them."""


def with_time_left(
    on_progress: OnProgress, clock: Callable[[], float] = time.perf_counter
) -> OnProgress:
    """Add to every report how long its stage will still take, by the pace so far.

    The pace is that of the steps since the first report of the same work: what a resumed run found
    finished took no time and promises none. Where the message changes, or fewer steps are done than
    before, other work begins.

    Args:
        on_progress: Where reports go.
        clock: Seconds that pass.

    Returns:
        The function to report to.
    """
    begun: dict[tuple[str, str], tuple[int, float]] = {}
    last: dict[tuple[str, str], int] = {}

    def report(progress: Progress) -> None:
        work, now = (progress.stage, progress.message), clock()
        if progress.done < last.get(work, progress.done + 1):
            begun[work] = progress.done, now
        last[work] = progress.done
        first, since = begun[work]
        steps = progress.done - first
        if progress.done >= progress.total:
            on_progress(replace(progress, seconds_left=0.0))
        elif steps > 0 and progress.seconds_left is None:
            left = (now - since) * (progress.total - progress.done) / steps
            on_progress(replace(progress, seconds_left=left))
        else:
            on_progress(progress)

    return report
