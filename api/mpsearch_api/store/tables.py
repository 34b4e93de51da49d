"""The tables; `migrations` makes them step by step, and a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = [
    "dispatchers",
    "events",
    "idempotency",
    "jobs",
    "keys",
    "metadata",
    "stored",
    "tenants",
    "upload_parts",
    "uploads",
]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# SQLite numbers rows by itself only in a column declared exactly INTEGER.
Number = BigInteger().with_variant(Integer, "sqlite")
Id = String(40)
Tenant = String(64)
Sha256 = String(64)
# Times are Unix seconds: the database's own clock can compute with them on either database.
Time: Double[float] = Double()

jobs = Table(
    "jobs",
    metadata,
    # Grows with every job and is never used again: the order of queue and lists.
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", Id, nullable=False, unique=True),
    Column("tenant", Tenant, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),
    Column("worker", String(200)),
    Column("lease_until", Time),
    Column("created", Time, nullable=False),
    Column("started", Time),
    Column("finished", Time),
    Column("last_event", Integer, nullable=False),
    # JSON of user text stays text: PostgreSQL's JSON types refuse U+0000.
    Column("request", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("failure", Text),
    Column("artifacts", Text, nullable=False),
    Index("ix_jobs_tenant_number", "tenant", "number"),
    Index("ix_jobs_status_tenant_number", "status", "tenant", "number"),
    Index("ix_jobs_lease_until", "lease_until"),
    Index("ix_jobs_finished", "finished"),
    sqlite_autoincrement=True,
)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", Tenant, primary_key=True),
    # Grows with every claim of anyone; the tenant with the smallest is next.
    Column("turn", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job", Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("time", Time, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("body", Text, nullable=False),
    sqlite_with_rowid=False,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Tenant, primary_key=True),
    Column("key_sha256", Sha256, primary_key=True),
    Column("request_sha256", Sha256, nullable=False),
    # The key is forgotten with the job: the same request then makes a new one.
    Column("job", Id, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created", Time, nullable=False, index=True),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Tenant, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    # Announced by the client; and, once the bytes are in the blob store, their name there.
    Column("announced", Sha256),
    Column("blob", Sha256),
    Column("created", Time, nullable=False),
    Column("changed", Time, nullable=False, index=True),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload", Id, ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Sha256, nullable=False),
    # Where the blob store keeps the bytes.
    Column("place", String(100), nullable=False),
)

stored = Table(
    "stored",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", Id, nullable=False, unique=True),
    Column("tenant", Tenant, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("labels", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Sha256, nullable=False),
    Column("created", Time, nullable=False),
    Index("ix_stored_tenant_kind_number", "tenant", "kind", "number"),
    sqlite_autoincrement=True,
)

keys = Table(
    "keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Tenant, nullable=False),
    Column("name", Text, nullable=False),
    Column("secret_sha256", Sha256, nullable=False),
    Column("scopes", String(200), nullable=False),
    Column("created", Time, nullable=False),
    Column("expires", Time),
    Column("revoked", Time),
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("time", Time, nullable=False),
    # What keeps it from running jobs.
    Column("reason", Text),
    Column("running", Integer, nullable=False),
)
