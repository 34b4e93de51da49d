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
        self.done = False
        self.result: Result | Exception | None = None


class GroupCommit(Generic[Item, Result]):
    """Turns calls of many threads into calls of one thread at a time, each with several items.

    Args:
        run: Commits several items together; returns a result, or an error to raise, for each.
        most: Largest group.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Sequence[Result | Exception]], most: int = 64
    ) -> None:
        self._run = run
        self._most = most
        self._changed = threading.Condition()
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
        with self._changed:
            self._waiting.append(ticket)
        while (group := self._next_group(ticket)) is not None:
            self._commit(group)
        if isinstance(ticket.result, Exception):
            raise ticket.result
        return ticket.result  # type: ignore[return-value]

    def _next_group(self, ticket: _Ticket[Item, Result]) -> list[_Ticket[Item, Result]] | None:
        """Wait until the ticket is done (None), or until it falls to this thread to commit."""
        with self._changed:
            self._changed.wait_for(lambda: ticket.done or not self._busy)
            if ticket.done:
                return None
            self._busy = True
            group = self._waiting[: self._most]
            del self._waiting[: self._most]
            return group

    def _commit(self, group: list[_Ticket[Item, Result]]) -> None:
        results: Sequence[Result | Exception]
        try:
            results = self._run([ticket.item for ticket in group])
        except Exception as error:  # noqa: BLE001 (each caller raises it)
            results = [error] * len(group)
        with self._changed:
            for ticket, result in zip(group, results, strict=True):
                ticket.result = result
                ticket.done = True
            self._busy = False
            self._changed.notify_all()
