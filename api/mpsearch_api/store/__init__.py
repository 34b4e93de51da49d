"""Jobs, uploads, stored objects and keys in one database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpsearch_api.settings import Settings
    from mpsearch_api.store.catalog import Catalog
    from mpsearch_api.store.changes import Changes
    from mpsearch_api.store.database import Clock, Database
    from mpsearch_api.store.dispatchers import Dispatchers
    from mpsearch_api.store.jobs import SqlJobs
    from mpsearch_api.store.keys import Keys
    from mpsearch_api.store.uploads import Uploads

__all__ = ["Store", "open_store"]


@dataclass(frozen=True)
class Store:
    """Everything the service remembers; safe to use from several threads and processes.

    Attributes:
        database: Where it is.
        jobs: The jobs; see `port.JobStore`.
        catalog: Stored objects.
        uploads: Files on their way in.
        keys: API keys.
        dispatchers: Those that work on this database.
        changes: Waiting for something to happen to a job.
    """

    database: Database
    jobs: SqlJobs
    catalog: Catalog
    uploads: Uploads
    keys: Keys
    dispatchers: Dispatchers
    changes: Changes

    def ready(self) -> str | None:
        """Say what keeps the database from answering, or None when nothing does."""
        from sqlalchemy import text

        from mpsearch_api.faults import UnavailableError

        try:
            with self.database.read() as connection:
                connection.execute(text("SELECT 1"))
        except UnavailableError as error:
            return str(error)
        return None

    def close(self) -> None:
        """Let go of the database."""
        self.changes.close()
        self.database.close()


def open_store(settings: Settings, *, clock: Clock | None = None) -> Store:
    """Open the database that the settings name, and bring its tables up to date.

    Args:
        settings: Of the service.
        clock: Unix seconds, instead of the database's own clock; for tests.

    Returns:
        The store.
    """
    # Imported on use: importing the port alone should not load SQLAlchemy and Alembic.
    from mpsearch_api.store.catalog import Catalog
    from mpsearch_api.store.changes import Changes
    from mpsearch_api.store.database import Database
    from mpsearch_api.store.dispatchers import Dispatchers
    from mpsearch_api.store.jobs import SqlJobs
    from mpsearch_api.store.keys import Keys
    from mpsearch_api.store.migrate import upgrade
    from mpsearch_api.store.uploads import Uploads

    # Other users of the machine need not read what tenants keep from each other.
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.database, clock)
    upgrade(database)
    return Store(
        database=database,
        jobs=SqlJobs(database),
        catalog=Catalog(database),
        uploads=Uploads(database),
        keys=Keys(database),
        dispatchers=Dispatchers(database),
        changes=Changes(database),
    )
