"""How a process hears that another one wrote to the database, for the price of almost nothing."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from sqlalchemy import Connection, text

from mpsearch_api.store.database import Database

__all__ = ["Bell", "PostgresBell", "SqliteBell", "announce", "make_bell"]

logger = logging.getLogger(__name__)

CHANNEL = "mpsearch_jobs"


class Bell(Protocol):
    """Tells whether anything was written.

    Attributes:
        interval: Seconds after which to look at the database in any case.
    """

    interval: float

    def fileno(self) -> int | None:
        """Give a file that becomes readable when something was written, if there is one."""
        ...

    def heard(self) -> bool:
        """Tell whether anything may have been written since the last call."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


def make_bell(database: Database) -> Bell:
    """Choose how to hear of changes.

    Args:
        database: Of which.

    Returns:
        The bell.
    """
    return PostgresBell(database) if database.postgres else SqliteBell(database)


def announce(connection: Connection) -> None:
    """Ring on commit where the database can; submissions do not, since nobody waits for them yet.

    PostgreSQL lets transactions that notify commit one after the other, so only those should.

    Args:
        connection: In a transaction.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})


class SqliteBell:
    """Asks SQLite for its data version, which other connections' commits change.

    Reading it takes microseconds and no lock (sqlite.org, PRAGMA data_version).

    Args:
        database: Of which.
    """

    interval = 0.05

    def __init__(self, database: Database) -> None:
        # The version is told relative to one connection, so this one is kept.
        self._connection = database.connect_driver()
        self._version: int | None = None

    def fileno(self) -> int | None:
        """See `Bell.fileno`: files do not ring."""
        return None

    def heard(self) -> bool:
        """See `Bell.heard`."""
        before = self._version
        self._version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        return self._version != before

    def close(self) -> None:
        """See `Bell.close`."""
        self._connection.close()


class PostgresBell:
    """Listens on a channel; connects again when the server went away.

    Once an interval it rings by itself: notifications may be lost on the way, such as in a pool of
    connections between us and the server that gives each transaction another one (PgBouncer).

    Args:
        database: Of which.
    """

    interval = 1.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._rung = float("-inf")

    def fileno(self) -> int | None:
        """See `Bell.fileno`."""
        if self._connection is None:
            return None
        return int(self._connection.fileno())

    def heard(self) -> bool:
        """See `Bell.heard`; while there is no connection everything may have changed."""
        if self._connection is None:
            self._listen()
            return True
        now = time.monotonic()
        try:
            told = any(True for _ in self._connection.notifies(timeout=0))
            if not told and now - self._rung < self.interval:
                return False
            self._rung = now
            return True
        except self._database.engine.dialect.loaded_dbapi.Error as error:
            logger.warning("the database no longer tells of changes: %s", error)
            self.close()
            return True

    def close(self) -> None:
        """See `Bell.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _listen(self) -> None:
        error_type = self._database.engine.dialect.loaded_dbapi.Error
        try:
            # Not one of the pool's: this one stays open, and listens.
            connection = self._database.connect_driver()
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}")
        except error_type as error:
            logger.warning("the database cannot be asked to tell of changes: %s", error)
            return
        self._connection = connection
