"""Which blob holds the answer to work already done, per tenant.

Tenants share nothing: that a profile is quickly there would tell one that another has the model.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from mpsearch_api.store.database import Database
from mpsearch_api.store.tables import profiles

__all__ = ["Profiles"]


class Profiles:
    """A map (tenant, key) -> blob; keys describe content: model, data, estimator, options.

    Args:
        database: Where.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, tenant: str, key: str) -> str | None:
        """Look a result up.

        Args:
            tenant: Whose.
            key: What it is the result of.

        Returns:
            The sha256 of the blob, or None.
        """
        with self._database.read() as connection:
            return connection.execute(
                select(profiles.c.sha256).where(
                    profiles.c.tenant == tenant, profiles.c.key_sha256 == _hash(key)
                )
            ).scalar_one_or_none()

    def put(self, tenant: str, key: str, sha256: str) -> None:
        """Remember a result; a later one for the same key replaces it.

        Args:
            tenant: Whose.
            key: What it is the result of.
            sha256: Of the blob, which is stored already.
        """
        dialect = postgresql if self._database.postgres else sqlite
        with self._database.write() as connection:
            now = self._database.now(connection)
            statement = dialect.insert(profiles).values(
                tenant=tenant, key_sha256=_hash(key), sha256=sha256, created=now
            )
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[profiles.c.tenant, profiles.c.key_sha256],
                    set_={"sha256": sha256, "created": now},
                )
            )

    def forget(self, tenant: str, key: str) -> None:
        """Forget a result, such as one whose blob turned out to be broken."""
        with self._database.write() as connection:
            connection.execute(
                delete(profiles).where(
                    profiles.c.tenant == tenant, profiles.c.key_sha256 == _hash(key)
                )
            )

    def purge(self, made_before: float) -> int:
        """Forget old results.

        Args:
            made_before: Unix time, seconds.

        Returns:
            How many.
        """
        with self._database.write() as connection:
            return connection.execute(
                delete(profiles).where(profiles.c.created < made_before)
            ).rowcount


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
