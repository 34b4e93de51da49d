"""Progress of long work, as values that any front end can show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["OnProgress", "Progress", "ignore_progress"]


@dataclass(frozen=True)
class Progress:
    """How far one stage of the work has come.

    Attributes:
        stage: `load`, `profile`, `price`, `solve`, `verify` or `report`.
        done: Steps finished.
        total: Steps in all.
        message: What is being done now.
    """

    stage: str
    done: int
    total: int
    message: str = ""


OnProgress = Callable[[Progress], None]
"""Called after every step, from the thread that does the work."""


def ignore_progress(_: Progress) -> None:
    """Take progress reports and do nothing with them."""
