"""note security events

What looked like an attack: one row for a kind, a subject and an hour.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None
SEVERITIES = ("notice", "warning", "alarm")


def upgrade() -> None:
    op.execute("CREATE SEQUENCE security_event_versions")
    op.create_table(
        "security_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(120), nullable=False),
        sa.Column("organisation_id", sa.Uuid(), nullable=True),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "severity",
            sa.Enum(
                *SEVERITIES,
                name=op.f("ck_security_events_severity"),
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolved_by", sa.String(100), nullable=True),
        sa.Column("resolution", sa.String(1000), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_security_events")),
        sa.UniqueConstraint("version", name=op.f("uq_security_events_version")),
        sa.UniqueConstraint("kind", "subject", "hour", name=op.f("uq_security_events_kind_subject_hour")),
    )
    op.create_index(op.f("ix_security_events_organisation_id"), "security_events", ["organisation_id"])
    op.create_index(op.f("ix_updates_blob_sha256"), "updates", ["blob_sha256"])


def downgrade() -> None:
    op.drop_index(op.f("ix_updates_blob_sha256"), "updates")
    op.drop_index(op.f("ix_security_events_organisation_id"), "security_events")
    op.drop_table("security_events")
    op.execute("DROP SEQUENCE security_event_versions")
