"""Dispatchers as they told of themselves last, for servers on other machines."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from mpsearch_api.store.database import Database
from mpsearch_api.store.tables import dispatchers

__all__ = ["Dispatchers", "Heard"]

FORGOTTEN_SECONDS = 3600.0


@dataclass(frozen=True)
class Heard:
    """What a dispatcher told last.

    Attributes:
        name: Its name, which begins with its machine's.
        age: Seconds ago, on the database's clock.
        reason: What keeps it from running jobs, or None.
        running: Jobs that it runs.
    """

    name: str
    age: float
    reason: str | None
    running: int


class Dispatchers:
    """The dispatchers that work on a database.

    Args:
        database: Which.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def tell(self, name: str, reason: str | None, running: int) -> None:
        """Say how a dispatcher is.

        Args:
            name: Its name.
            reason: What keeps it from running jobs, or None.
            running: Jobs that it runs.
        """
        dialect = postgresql if self._database.postgres else sqlite
        with self._database.write() as connection:
            told = {
                "time": self._database.now(connection),
                "reason": reason,
                "running": running,
            }
            connection.execute(
                dialect.insert(dispatchers)
                .values(name=name, **told)
                .on_conflict_do_update(index_elements=[dispatchers.c.name], set_=told)
            )

    def heard(self, seconds: float) -> list[Heard]:
        """List the dispatchers that told of themselves lately.

        Args:
            seconds: How lately.

        Returns:
            Them, by name.
        """
        with self._database.read() as connection:
            now = self._database.now(connection)
            rows = connection.execute(
                select(dispatchers)
                .where(dispatchers.c.time >= now - seconds)
                .order_by(dispatchers.c.name)
            )
            return [Heard(row.name, now - row.time, row.reason, row.running) for row in rows]

    def retire(self, name: str) -> None:
        """Forget a dispatcher that ends, and those that were not heard of for an hour.

        Args:
            name: Its name.
        """
        with self._database.write() as connection:
            limit = self._database.now(connection) - FORGOTTEN_SECONDS
            connection.execute(
                delete(dispatchers).where(
                    (dispatchers.c.name == name) | (dispatchers.c.time < limit)
                )
            )
