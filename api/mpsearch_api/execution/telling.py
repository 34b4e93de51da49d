"""What a job tells on the way: progress with the time it will take, and figures known early."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter, ValidationError

from mpsearch.progress import Progress
from mpsearch.schemas.jobs import STAGES, Stage
from mpsearch_api.store.history import update_event
from mpsearch_api.store.port import Update

__all__ = ["Tell", "Teller", "UpdateReader", "pack_update"]

Tell = Callable[[Update], None]
Figure = str | int | float | bool | None

INTERVAL = 0.2
"""Seconds between progress reports of one stage."""

MOST_SAID = 1000
"""Messages and figures that one job may have kept."""

_LONGEST_LINE = 64 * 1024
_LONGEST_TEXT = 500
_UPDATE: TypeAdapter[Update] = TypeAdapter(Update)


def pack_update(update: Update) -> bytes:
    """Write an update as one line of JSON.

    Args:
        update: The update.

    Returns:
        The line.
    """
    short = replace(update, message=update.message[:_LONGEST_TEXT])
    return json.dumps(asdict(short)).encode() + b"\n"


class UpdateReader:
    """Puts lines together from what arrives; what a job sends is checked, not trusted."""

    def __init__(self, most: int = MOST_SAID) -> None:
        """Start with nothing read.

        Args:
            most: Messages and figures taken from one job; progress is not counted.
        """
        self._rest = b""
        self._left = most
        self.refused = 0

    def read(self, chunk: bytes) -> list[Update]:
        """Take more bytes.

        Args:
            chunk: As they arrived.

        Returns:
            The updates completed by them, those of progress thinned to the newest in a row.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            self._rest = b""
            self.refused += 1
        found: list[Update] = []
        for line in filter(None, lines):
            update = _checked(line)
            if update is None:
                self.refused += 1
                continue
            if update.kind != "progress":
                self._left -= 1
                if self._left < 0:
                    self.refused += 1
                    continue
            if found and _replaces(update, found[-1]):
                found.pop()
            found.append(update)
        return found


def _checked(line: bytes) -> Update | None:
    """Read a line; None where it is no update, or one that no event could tell."""
    try:
        update = _UPDATE.validate_json(line)
        told = replace(
            update,
            message=update.message[:_LONGEST_TEXT],
            data={name[:_LONGEST_TEXT]: _told(figure) for name, figure in update.data.items()},
        )
        update_event(1, 0.0, 1, told)
    except ValidationError:
        return None
    return told


def _told(figure: Figure) -> Figure:
    """Cut a long text; a loss that is infinite or not a number is one that is not known."""
    if isinstance(figure, float) and not math.isfinite(figure):
        return None
    return figure[:_LONGEST_TEXT] if isinstance(figure, str) else figure


def _replaces(update: Update, last: Update) -> bool:
    return (update.kind, last.kind, update.stage) == ("progress", "progress", last.stage) and not (
        last.cached and not update.cached
    )


@dataclass
class _Running:
    """A stage under way: since when, and when it was last told of."""

    stage: Stage
    since: float
    told: float = float("-inf")


class Teller:
    """Turns the progress of a search into updates, not too many, with an estimate of the end."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing told.

        Args:
            tell: Takes the updates.
            clock: Seconds.
        """
        self._tell = tell
        self._clock = clock
        self._running: _Running | None = None

    def __call__(self, progress: Progress) -> None:
        """Take a progress report of the library.

        Args:
            progress: The report.
        """
        stage = next((known for known in STAGES if known == progress.stage), None)
        if stage is None:
            return
        share = min(1.0, progress.done / progress.total) if progress.total else 0.0
        self.progress(stage, share, progress.message)

    def progress(
        self, stage: Stage, share: float, message: str = "", *, cached: bool = False
    ) -> None:
        """Tell how far a stage is.

        Args:
            stage: The stage.
            share: In [0, 1].
            message: What is being done.
            cached: Whether the stage was answered from earlier work.
        """
        now = self._clock()
        running = self._running
        if running is None or running.stage != stage:
            running = self._running = _Running(stage, now)
        if share < 1.0 and now - running.told < INTERVAL:
            return
        running.told = now
        elapsed = now - running.since
        eta = elapsed * (1 - share) / share if 0 < share < 1 and elapsed > INTERVAL else None
        self._tell(Update("progress", stage, share, message, eta, cached))

    def partial(self, stage: Stage, **figures: str | float | bool | None) -> None:
        """Tell figures that are known before the job ends.

        Args:
            stage: Where they come from.
            **figures: Their names and values.
        """
        self._tell(Update("partial", stage, data=dict(figures)))

    def message(self, stage: Stage, text: str) -> None:
        """Tell something for people.

        Args:
            stage: What it is about.
            text: The sentence.
        """
        self._tell(Update("message", stage, message=text))
