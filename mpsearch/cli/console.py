"""What the commands print: tables and progress for people on stderr, JSON on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from mpsearch.progress import OnProgress, Progress

__all__ = ["print_document", "print_error", "progress_bars", "show"]

LOG_WIDTH = 120


def _stderr() -> Console:
    # Made anew each time, so that it follows a stderr that was replaced.
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A log file has no width of its own, and 80 columns would fold the tables.
        console.width = LOG_WIDTH
    return console


def show(renderable: RenderableType) -> None:
    """Print something for people.

    Args:
        renderable: Text or a table.
    """
    _stderr().print(renderable)


def print_error(message: str) -> None:
    """Print an error on one screen.

    Args:
        message: What was wrong and what to do.
    """
    _stderr().print(Panel(Text(message), title="error", title_align="left", border_style="red"))


def print_document(document: BaseModel) -> None:
    """Print a document for programs.

    Args:
        document: Goes to stdout as JSON.
    """
    sys.stdout.write(document.model_dump_json(indent=1) + "\n")


@contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """Show a bar for every stage while work goes on.

    Yields:
        The function to report progress to.
    """
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Bars(*columns, console=_stderr()) as bars:
        tasks = {}

        def on_progress(report: Progress) -> None:
            if report.stage not in tasks:
                tasks[report.stage] = bars.add_task(report.stage, total=report.total, note="")
            bars.update(
                tasks[report.stage],
                completed=report.done,
                total=report.total,
                note=_note(report),
            )

        yield on_progress


def _note(report: Progress) -> str:
    if not report.seconds_left:
        return report.message
    minutes, seconds = divmod(round(report.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{report.message}, {hours}:{minutes:02}:{seconds:02} left"
