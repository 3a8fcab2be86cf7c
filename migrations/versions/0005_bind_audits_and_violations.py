"""bind audits and violations

An audit names the frozen manifest that it attacked; a violation that somebody can cause at will has a name
that is recorded once.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIND_FORMER = """
ALTER TABLE privacy_audits DISABLE TRIGGER privacy_audits_append_only;
UPDATE privacy_audits SET manifest_sha256 = runs.manifest_sha256
    FROM runs WHERE runs.id = privacy_audits.run_id AND privacy_audits.at >= runs.started_at;
ALTER TABLE privacy_audits ENABLE TRIGGER privacy_audits_append_only;
"""
"""Audits from before a run's start stay without a manifest: what they attacked could still be changed."""


def upgrade() -> None:
    op.add_column("privacy_audits", sa.Column("manifest_sha256", sa.String(length=64), nullable=True))
    op.execute(BIND_FORMER)
    op.add_column("privacy_violations", sa.Column("once", sa.String(length=200), nullable=True))
    op.create_unique_constraint(op.f("uq_privacy_violations_once"), "privacy_violations", ["once"])


def downgrade() -> None:
    op.drop_constraint(op.f("uq_privacy_violations_once"), "privacy_violations", type_="unique")
    op.drop_column("privacy_violations", "once")
    op.drop_column("privacy_audits", "manifest_sha256")
