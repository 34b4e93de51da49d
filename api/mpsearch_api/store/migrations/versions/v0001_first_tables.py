"""Jobs, uploads, stored objects, keys and cached results."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Id = sa.String(40)
Tenant = sa.String(64)
Sha256 = sa.String(64)
Time: sa.Double[float] = sa.Double()


def upgrade() -> None:
    """Make the first tables."""
    _jobs()
    _belonging_to_jobs()
    _uploads()
    op.create_table(
        "keys",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", Tenant, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", Sha256, nullable=False),
        sa.Column("scopes", sa.String(200), nullable=False),
        sa.Column("created", Time, nullable=False),
        sa.Column("expires", Time),
        sa.Column("revoked", Time),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_table(
        "profiles",
        sa.Column("tenant", Tenant, nullable=False),
        sa.Column("key_sha256", Sha256, nullable=False),
        sa.Column("sha256", Sha256, nullable=False),
        sa.Column("created", Time, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key_sha256", name="pk_profiles"),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant", Tenant, nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_tenants"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", Number, autoincrement=True, nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", Tenant, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(200)),
        sa.Column("lease_until", Time),
        sa.Column("created", Time, nullable=False),
        sa.Column("started", Time),
        sa.Column("finished", Time),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("failure", sa.Text()),
        sa.Column("artifacts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_finished", "jobs", ["finished"])
    op.create_index("ix_jobs_lease_until", "jobs", ["lease_until"])
    op.create_index("ix_jobs_status_tenant_number", "jobs", ["status", "tenant", "number"])
    op.create_index("ix_jobs_tenant_number", "jobs", ["tenant", "number"])


def _belonging_to_jobs() -> None:
    op.create_table(
        "events",
        sa.Column("job", Number, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", Time, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.number"], name="fk_events_job", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "id", name="pk_events"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant", Tenant, nullable=False),
        sa.Column("key_sha256", Sha256, nullable=False),
        sa.Column("request_sha256", Sha256, nullable=False),
        sa.Column("job", Id, nullable=False),
        sa.Column("created", Time, nullable=False),
        sa.ForeignKeyConstraint(
            ["job"], ["jobs.id"], name="fk_idempotency_job", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "key_sha256", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created", "idempotency", ["created"])
    op.create_index("ix_idempotency_job", "idempotency", ["job"])


def _uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", Tenant, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("announced", Sha256),
        sa.Column("blob", Sha256),
        sa.Column("created", Time, nullable=False),
        sa.Column("changed", Time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_changed", "uploads", ["changed"])
    op.create_index("ix_uploads_tenant", "uploads", ["tenant"])
    op.create_table(
        "stored",
        sa.Column("number", Number, autoincrement=True, nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", Tenant, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", Sha256, nullable=False),
        sa.Column("created", Time, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_stored"),
        sa.UniqueConstraint("id", name="uq_stored_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_stored_tenant_kind_number", "stored", ["tenant", "kind", "number"])
