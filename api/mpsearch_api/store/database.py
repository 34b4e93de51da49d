"""One database behind one engine: transactions, the clock, and errors said in our words."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mpsearch.errors import DependencyError, InputError
from mpsearch_api.faults import UnavailableError

__all__ = ["Clock", "Database"]

Clock = Callable[[], float]

DATABASE_CLOCK = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)")
# Connections kept open, and the most at once; the threads of a server wait for one.
POOL_KEPT = 8
POOL_MOST = 40
WAIT_SECONDS = 30.0
OLDEST_SQLITE = (3, 35, 0)


class Database:
    """A database with its clock.

    SQLite: write-ahead log, `synchronous=FULL` (a commit is on the disk when it returns), one
    writer at a time, taken with BEGIN IMMEDIATE so that no transaction must give up half-way.
    PostgreSQL: READ COMMITTED with row locks. Times come from the database's clock there, since
    servers that share it may disagree; with SQLite all share one machine.

    Args:
        url: SQLAlchemy URL, `sqlite:///FILE` or `postgresql://…`.
        clock: Unix seconds; in tests, instead of the database's own.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self.clock = clock
        self.engine = _make_engine(url)
        self.postgres = self.engine.dialect.name == "postgresql"
        # SQLite's connections are in this mode to begin with, and setting it anew costs queries.
        options = {"isolation_level": "AUTOCOMMIT"} if self.postgres else {}
        self._reading = self.engine.execution_options(**options)
        self._writing = self.engine.execution_options(mpsearch_write=True)
        # Threads queue here rather than in SQLite's busy handler, which sleeps between tries.
        self._writer: AbstractContextManager[object] = (
            nullcontext() if self.postgres else threading.Lock()
        )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection on which every statement sees one consistent state, by itself.

        Yields:
            The connection.
        """
        with _in_our_words(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction that commits at the end, or not at all.

        Yields:
            The connection.
        """
        with _in_our_words(), self._writer, self._writing.begin() as connection:
            yield connection

    def now(self, connection: Connection) -> float:
        """Read the clock.

        Args:
            connection: Where PostgreSQL is asked.

        Returns:
            Unix seconds.
        """
        if self.clock is not None:
            return self.clock()
        if self.postgres:
            return float(connection.execute(DATABASE_CLOCK).scalar_one())
        return time.time()

    def connect_driver(self) -> Any:  # noqa: ANN401 (its type depends on the database)
        """Open a connection of the driver's own kind, outside the pool; the caller closes it."""
        pooled = self.engine.raw_connection()
        connection = pooled.driver_connection
        assert connection is not None
        pooled.detach()
        return connection

    def close(self) -> None:
        """Close the connections that nobody holds."""
        self.engine.dispose()


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise _unavailable(error) from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> UnavailableError:
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()
    return UnavailableError(
        f"the database does not answer ({reason[0] if reason else type(error).__name__}); "
        "try again shortly"
    )


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(
            parsed,
            pool_size=POOL_KEPT,
            max_overflow=POOL_MOST - POOL_KEPT,
            pool_timeout=WAIT_SECONDS,
            pool_pre_ping=True,
            skip_autocommit_rollback=True,
            connect_args={"connect_timeout": 10},
        )
    if parsed.get_backend_name() != "sqlite" or parsed.database in {None, "", ":memory:"}:
        raise InputError(
            f"database {parsed.render_as_string()!r} is neither sqlite:///FILE nor postgresql://…"
        )
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise DependencyError(
            f"SQLite {sqlite3.sqlite_version} of this Python has no RETURNING; use a Python with "
            "SQLite 3.35 or newer, or a PostgreSQL database_url"
        )
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        parsed,
        pool_size=POOL_KEPT,
        max_overflow=POOL_MOST - POOL_KEPT,
        pool_timeout=WAIT_SECONDS,
        connect_args={"timeout": WAIT_SECONDS},
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver would begin transactions of its own, always deferred; `_begin_sqlite` does. (The
    # engine then takes connections for autocommitting: it must not skip rollbacks of those.)
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_size_limit = 67108864")


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("mpsearch_write"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
