"""keep privacy audits

What empirical audits of the mechanisms found, for ever: a bound that shows a claim false, or that it did not.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

APPEND_ONLY = """
CREATE TRIGGER privacy_audits_append_only BEFORE UPDATE OR DELETE ON privacy_audits
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER privacy_audits_no_truncate BEFORE TRUNCATE ON privacy_audits
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    op.create_table(
        "privacy_audits",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organisation_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("refuted", sa.Boolean(), nullable=False),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["organisation_id"],
            ["organisations.id"],
            name=op.f("fk_privacy_audits_organisation_id_organisations"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_privacy_audits_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_privacy_audits")),
    )
    op.create_index(
        op.f("ix_privacy_audits_organisation_id"), "privacy_audits", ["organisation_id"], unique=False
    )
    op.execute(APPEND_ONLY)


def downgrade() -> None:
    op.drop_index(op.f("ix_privacy_audits_organisation_id"), table_name="privacy_audits")
    op.drop_table("privacy_audits")
