"""Uploads in pieces that any server can read, and dispatchers that any server can see."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Id = sa.String(40)
Time: sa.Double[float] = sa.Double()


def upgrade() -> None:
    """Make the tables, and drop the one that nothing used."""
    op.create_table(
        "upload_parts",
        sa.Column("upload", Id, nullable=False),
        sa.Column("offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("place", sa.String(100), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload"], ["uploads.id"], name="fk_upload_parts_upload", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("upload", "offset", name="pk_upload_parts"),
    )
    op.create_table(
        "dispatchers",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("time", Time, nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_dispatchers"),
    )
    op.drop_table("profiles")
    # Their bytes lie in a file of one server; whoever sends them is told to begin again.
    op.execute('UPDATE uploads SET "offset" = 0 WHERE blob IS NULL')
