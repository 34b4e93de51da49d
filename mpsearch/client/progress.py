"""Progress for people, on stderr: a bar for the stage of a job, a bar for an upload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mpsearch.client.storing import OnEvent
from mpsearch.client.uploading import OnUpload
from mpsearch.schemas.jobs import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["JobBars", "job_bars", "upload_bar"]

_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_LOG_WIDTH = 120


class JobBars:
    """A bar for every stage, moved by events."""

    def __init__(self, bars: Progress) -> None:
        """Begin without stages.

        Args:
            bars: Where they are drawn.
        """
        self._bars = bars
        self._status = bars.add_task("queued", total=None, note="")
        self._stages: dict[str, TaskID] = {}
        self._attempt = 0

    def __call__(self, event: Event) -> None:
        """Show what happened.

        Args:
            event: What happened.
        """
        if event.attempt > self._attempt:
            if self._attempt:
                self._start_again(event.attempt)
            self._attempt = event.attempt
        if event.status is not None:
            self._bars.update(self._status, description=event.status, note=event.message)
            if event.status in _ENDED:
                self._end()
        if event.stage is not None:
            self._move(event, event.stage)

    def _start_again(self, attempt: int) -> None:
        for task in self._stages.values():
            self._bars.remove_task(task)
        self._stages.clear()
        self._bars.console.print(f"the worker was lost; attempt {attempt}", style="yellow")

    def _move(self, event: Event, stage: str) -> None:
        if stage not in self._stages:
            # A stage that begins means that those before it are done.
            for task in self._stages.values():
                self._bars.update(task, completed=1.0)
            self._stages[stage] = self._bars.add_task(stage, total=1.0, note="")
        task = self._stages[stage]
        left = "" if event.eta_seconds is None else f"{event.eta_seconds:.0f} s left  "
        note = left + event.message
        if event.progress is not None:
            self._bars.update(task, completed=event.progress, note=note)
        elif note:
            self._bars.update(task, note=note)

    def _end(self) -> None:
        for task in self._bars.tasks:
            self._bars.stop_task(task.id)
        self._bars.update(self._status, total=1.0, completed=1.0)


@contextmanager
def job_bars(console: Console | None = None) -> Iterator[OnEvent]:
    """Show the stages of a job while it is followed.

    Args:
        console: Where; stderr by default.

    Yields:
        The function to call with events.
    """
    with _bars(console) as bars:
        yield JobBars(bars)


@contextmanager
def upload_bar(console: Console | None = None) -> Iterator[OnUpload]:
    """Show how much of an upload the service has.

    Args:
        console: Where; stderr by default.

    Yields:
        The function to call with bytes sent and bytes in all.
    """
    with _bars(console) as bars:
        tasks: dict[int, TaskID] = {}

        def on_upload(sent: int, total: int) -> None:
            if total not in tasks:
                tasks[total] = bars.add_task("upload", total=total, note=f"{total / 1e6:.1f} MB")
            bars.update(tasks[total], completed=sent)

        yield on_upload


def _bars(console: Console | None) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    if console is None:
        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:
            console.width = _LOG_WIDTH  # a log has no width of its own
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
    )
