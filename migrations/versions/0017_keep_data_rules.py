"""keep data rules

What an organisation's data may be used for, in versions that stay; the steward who sets them; and whose law
a client's data are under.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

FORMER_ROLES = "'admin', 'coordinator', 'privacy_officer', 'auditor', 'viewer', 'client'"
ROLES = f"{FORMER_ROLES}, 'data_steward'"
APPEND_ONLY = """
CREATE TRIGGER data_rules_append_only BEFORE UPDATE OR DELETE ON data_rules
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER data_rules_no_truncate BEFORE TRUNCATE ON data_rules
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def _allow(roles: str) -> None:
    op.execute("ALTER TABLE members DROP CONSTRAINT ck_members_role")
    op.execute(f"ALTER TABLE members ADD CONSTRAINT ck_members_role CHECK (role IN ({roles}))")


def upgrade() -> None:
    op.create_table(
        "data_rules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organisation_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("rules", postgresql.JSONB(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_data_rules_version")),
        sa.ForeignKeyConstraint(
            ["organisation_id"],
            ["organisations.id"],
            name=op.f("fk_data_rules_organisation_id_organisations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_data_rules")),
        sa.UniqueConstraint("organisation_id", "version", name=op.f("uq_data_rules_organisation_id_version")),
    )
    op.execute(APPEND_ONLY)
    op.add_column("enrolments", sa.Column("jurisdiction", sa.String(6), nullable=True))
    op.add_column("clients", sa.Column("jurisdiction", sa.String(6), nullable=True))
    _allow(ROLES)


def downgrade() -> None:
    op.execute("UPDATE members SET role = 'viewer' WHERE role = 'data_steward'")
    _allow(FORMER_ROLES)
    op.drop_column("clients", "jurisdiction")
    op.drop_column("enrolments", "jurisdiction")
    op.drop_table("data_rules")
