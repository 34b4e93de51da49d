"""Bringing a database to the newest schema, whoever starts first."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import text

from mpsearch.errors import DependencyError
from mpsearch_api.store.database import WAIT_SECONDS, Database

# Alembic tells at length what it loads and runs; what went wrong it raises.
logging.getLogger("alembic").setLevel(logging.WARNING)

__all__ = ["revisions", "upgrade"]

FOLDER = Path(__file__).parent / "migrations"
# Any number that no other program on the same server is likely to lock.
ADVISORY_LOCK = 0x6D70_7365_6172_6368


def revisions() -> list[str]:
    """List the schema versions, oldest first.

    Returns:
        Their names.
    """
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def upgrade(database: Database, to: str = "head") -> None:
    """Bring the schema up to a version, in one transaction that one process at a time may hold.

    Args:
        database: Which.
        to: Version; older than the present one changes nothing.

    Raises:
        DependencyError: The database was made by a newer mpsearch.
        CommandError: There is no such version.
    """
    if not database.postgres:
        _use_write_ahead_log(database)
    with database.write() as connection:
        if database.postgres:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, to)
        except CommandError as error:
            found = MigrationContext.configure(connection).get_current_revision()
            if found not in revisions():
                raise DependencyError(
                    f"the database has schema version {found}, which this mpsearch does not "
                    "know; it was made by a newer one: upgrade mpsearch"
                ) from error
            raise


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _use_write_ahead_log(database: Database) -> None:
    """Switch the file over; SQLite refuses at once, without waiting, while others have it open."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        connection = database.engine.raw_connection()
        try:
            row = connection.cursor().execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            assert row[0] in {"wal", "memory"}
            return
        finally:
            connection.close()
