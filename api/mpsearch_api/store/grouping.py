"""Group commit: callers that arrive while a transaction is on its way to the disk share the next.

One fsync per commit bounds a database to as many commits a second as its disk can flush; sharing
them is how databases themselves get past it (DeWitt et al. 1984, "Implementation techniques for
main memory database systems"). SQLite has one writer and no group commit of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["GroupCommit"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Ticket(Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.woken = threading.Event()
        self.done = False
        self.result: Result | Exception | None = None


class GroupCommit(Generic[Item, Result]):
    """Turns calls of many threads into calls of one thread at a time, each with several items.

    The thread that finds nobody at work commits what waits; whoever comes meanwhile waits, and the
    first of them commits the next group. Each thread is woken once, when its item is done or its
    turn has come.

    Args:
        run: Commits several items together; returns a result, or an error to raise, for each.
        most: Largest group.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Sequence[Result | Exception]], most: int = 64
    ) -> None:
        self._run = run
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[Item, Result]] = []
        self._busy = False

    def __call__(self, item: Item) -> Result:
        """Commit one item, together with others that wait; returns when it is durable.

        Args:
            item: What to commit.

        Returns:
            Its result.
        """
        ticket: _Ticket[Item, Result] = _Ticket(item)
        with self._lock:
            self._waiting.append(ticket)
            first = not self._busy
            self._busy = True
        if not first:
            ticket.woken.wait()
        if not ticket.done:
            # The oldest of those that wait, so that its own item is in this group.
            self._commit_group()
        if isinstance(ticket.result, Exception):
            raise ticket.result
        return ticket.result  # type: ignore[return-value]

    def _commit_group(self) -> None:
        with self._lock:
            group = self._waiting[: self._most]
            del self._waiting[: self._most]
        results: Sequence[Result | Exception]
        try:
            results = self._run([ticket.item for ticket in group])
        except Exception as error:  # noqa: BLE001 (each caller raises it)
            results = [error] * len(group)
        for ticket, result in zip(group, results, strict=True):
            ticket.result = result
            ticket.done = True
            ticket.woken.set()
        with self._lock:
            self._busy = bool(self._waiting)
            if self._waiting:
                self._waiting[0].woken.set()
