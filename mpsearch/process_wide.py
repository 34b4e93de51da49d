"""Contexts around switches that a process has one of, whatever thread throws them.

Whoever throws the same switch must share the context: two of them would again save what the other
has thrown.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr

__all__ = ["SILENT_ERRORS", "ProcessWide"]


class ProcessWide:
    """A context that may be entered by several threads at once, and more than once by each.

    Contexts that save a switch, throw it and put it back are not made for threads: the second one
    saves what the first has thrown, and when it ends last the switch stays so for good. Here the
    first who comes throws it, and the last who leaves puts it back.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        """Throw nothing yet.

        Args:
            make: Makes the context that throws the switch and puts it back.
        """
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0
        self._thrown: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        """Throw the switch, unless it is."""
        with self._lock:
            if self._thrown is None:
                made = self._make()
                made.__enter__()
                self._thrown = made
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        """Put it back, unless somebody is inside."""
        with self._lock:
            self._inside -= 1
            if not self._inside and self._thrown is not None:
                thrown, self._thrown = self._thrown, None
                thrown.__exit__(None, None, None)


SILENT_ERRORS = ProcessWide(lambda: redirect_stderr(io.StringIO()))
"""Context in which nothing that Python writes to standard error is seen."""
