"""API keys: made once, shown once, kept only as a hash.

A secret is 256 random bits, so nobody can guess it from its hash however fast the hash is: SHA-256
serves, and the slow, salted hashes that passwords need would only slow every request down (NIST SP
800-63B, 5.1.2.2: look-up secrets of 112 bits and more need no salt or stretching).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Row, func, insert, or_, select, update

from mpsearch.errors import InputError, UnknownNameError
from mpsearch_api.store.database import Database
from mpsearch_api.store.ids import is_id, new_id
from mpsearch_api.store.rows import moment
from mpsearch_api.store.tables import keys

__all__ = ["SCOPES", "KeyRecord", "Keys", "Principal", "Scope"]

Scope = Literal["read", "write", "admin", "trusted"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# What else a scope allows; `trusted` stands alone.
IMPLIED: dict[Scope, frozenset[Scope]] = {
    "read": frozenset({"read"}),
    "write": frozenset({"read", "write"}),
    "admin": frozenset({"read", "write", "admin"}),
    "trusted": frozenset({"trusted"}),
}
TOKEN = re.compile(r"mps_([0-9a-z]{26})_([0-9a-f]{64})")
TENANT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
# Compared with when there is no such key, so that an answer takes as long as with one.
NO_HASH = "0" * 64


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        tenant: Whose objects it sees.
        key_id: Of its key; None in open mode.
        scopes: What it may do, implied scopes included.
        open_mode: Whether the service runs without keys.
    """

    tenant: str
    key_id: str | None
    scopes: frozenset[Scope]
    open_mode: bool = False


@dataclass(frozen=True)
class KeyRecord:
    """A key as the service remembers it; the secret is not in it.

    Attributes:
        id: Its public part.
        tenant: Whose objects its holder sees.
        name: For people.
        scopes: As given when it was made.
        created: When it was made.
        expires: When it ends; None: never.
        revoked: When it was revoked; None: it was not.
    """

    id: str
    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    created: datetime
    expires: datetime | None
    revoked: datetime | None


class Keys:
    """The keys in a database.

    Args:
        database: Where.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        expires: datetime | None = None,
        *,
        tenant: str | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key.

        Args:
            name: For people.
            scopes: Out of `SCOPES`.
            expires: When it ends, with a time zone; None: never.
            tenant: Whose objects it sees; by default it is a tenant of its own.

        Returns:
            The record, and the token `mps_<id>_<secret>`, which cannot be had again.

        Raises:
            InputError: The name is empty, there is no scope, the tenant cannot be a name, or the
                end has no time zone or is past.
        """
        chosen = _check_scopes(scopes)
        if not name.strip() or len(name) > 200:
            raise InputError(f"key name {name[:40]!r} has no or more than 200 characters")
        if tenant is not None and TENANT.fullmatch(tenant) is None:
            raise InputError(
                f"tenant {tenant[:70]!r} is not made of up to 64 of a-z, 0-9, '.', '_' and '-'"
            )
        if expires is not None and expires.tzinfo is None:
            raise InputError(f"the end {expires} has no time zone; add one, such as +00:00")
        secret = secrets.token_hex(32)
        with self._database.write() as connection:
            now = self._database.now(connection)
            if expires is not None and expires.timestamp() <= now:
                raise InputError(f"the end {expires} is past; it is {moment(now)}")
            identity = new_id("key", now)
            row = connection.execute(
                insert(keys)
                .values(
                    id=identity,
                    tenant=tenant if tenant is not None else identity,
                    name=json.dumps(name),
                    secret_sha256=_hash(secret),
                    scopes=" ".join(chosen),
                    created=now,
                    expires=None if expires is None else expires.timestamp(),
                )
                .returning(*keys.c)
            ).one()
        return _record(row), f"mps_{identity.removeprefix('key_')}_{secret}"

    def check(self, token: str) -> Principal | None:
        """Tell who holds a token; the secret is compared in constant time.

        Args:
            token: What the caller sent.

        Returns:
            Who it is, or None when the token is unknown, expired or revoked.
        """
        parts = TOKEN.fullmatch(token)
        identity = f"key_{parts.group(1)}" if parts else "key_"
        secret = parts.group(2) if parts else ""
        with self._database.read() as connection:
            now = self._database.now(connection)
            row = connection.execute(
                select(keys).where(
                    keys.c.id == identity,
                    keys.c.revoked.is_(None),
                    or_(keys.c.expires.is_(None), keys.c.expires > now),
                )
            ).one_or_none()
        expected = NO_HASH if row is None else row.secret_sha256
        if not hmac.compare_digest(_hash(secret), expected) or row is None:
            return None
        scopes = _record(row).scopes
        return Principal(row.tenant, row.id, frozenset().union(*(IMPLIED[s] for s in scopes)))

    def list(self) -> list[KeyRecord]:
        """List all keys, oldest first, revoked and expired ones too."""
        with self._database.read() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created, keys.c.id)).all()
        return [_record(row) for row in rows]

    def revoke(self, key: str) -> bool:
        """End a key now.

        Args:
            key: Its id.

        Returns:
            Whether there was such a key, not revoked before.
        """
        if not is_id("key", key):
            return False
        with self._database.write() as connection:
            changed = connection.execute(
                update(keys)
                .where(keys.c.id == key, keys.c.revoked.is_(None))
                .values(revoked=self._database.now(connection))
            )
            return changed.rowcount == 1

    def any(self) -> bool:
        """Tell whether a key was ever made; open mode ends with the first."""
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(keys)).scalar_one() > 0


def _check_scopes(scopes: Iterable[str]) -> tuple[Scope, ...]:
    given = set(scopes)
    for scope in sorted(given - set(SCOPES)):
        raise UnknownNameError("scope", scope, SCOPES)
    if not given:
        raise InputError(f"a key needs a scope: {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in given)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        tenant=row.tenant,
        name=json.loads(row.name),
        scopes=tuple(row.scopes.split()),
        created=moment(row.created),
        expires=None if row.expires is None else moment(row.expires),
        revoked=None if row.revoked is None else moment(row.revoked),
    )
