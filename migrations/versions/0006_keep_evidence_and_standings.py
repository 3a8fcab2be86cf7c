"""keep evidence and standings

What robust rounds leave behind: per-client evidence, where each client stands on the ladder, and the state of
a server optimizer beside the adapter that it made.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STEPS = ("observe", "discount", "quarantine", "suspend")
APPEND_ONLY = """
CREATE TRIGGER standings_append_only BEFORE UPDATE OR DELETE ON standings
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER standings_no_truncate BEFORE TRUNCATE ON standings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    for table in ("rounds", "releases"):
        op.add_column(table, sa.Column("optimizer_sha256", sa.String(64), nullable=True))
    op.create_table(
        "update_evidence",
        sa.Column("round_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("finite", sa.Boolean(), nullable=False),
        sa.Column("norm", sa.Float(), nullable=True),
        sa.Column("clipped", sa.Boolean(), nullable=False),
        sa.Column("norm_ratio", sa.Float(), nullable=True),
        sa.Column("distance_ratio", sa.Float(), nullable=True),
        sa.Column("cosine", sa.Float(), nullable=True),
        sa.Column("nearest_ratio", sa.Float(), nullable=True),
        sa.Column("odd", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_update_evidence_round_id_rounds")),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_update_evidence_client_id_clients")
        ),
        sa.PrimaryKeyConstraint("round_id", "client_id", name=op.f("pk_update_evidence")),
    )
    op.create_index(op.f("ix_update_evidence_client_id"), "update_evidence", ["client_id"], unique=False)
    op.create_table(
        "standings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("round_id", sa.Uuid(), nullable=True),
        sa.Column("odd", sa.Boolean(), nullable=True),
        sa.Column(
            "step",
            sa.Enum(
                *STEPS, name=op.f("ck_standings_step"), native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column("suspicion", sa.Float(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "(round_id IS NULL) = (reason IS NOT NULL)", name=op.f("ck_standings_judged_or_reversed")
        ),
        sa.CheckConstraint("suspicion >= 0", name=op.f("ck_standings_suspicion")),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_standings_client_id_clients")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_standings_round_id_rounds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_standings")),
        sa.UniqueConstraint("round_id", "client_id", name=op.f("uq_standings_round_id_client_id")),
    )
    op.create_index(op.f("ix_standings_client_id"), "standings", ["client_id"], unique=False)
    op.execute(APPEND_ONLY)


def downgrade() -> None:
    op.drop_index(op.f("ix_standings_client_id"), table_name="standings")
    op.drop_table("standings")
    op.drop_index(op.f("ix_update_evidence_client_id"), table_name="update_evidence")
    op.drop_table("update_evidence")
    for table in ("releases", "rounds"):
        op.drop_column(table, "optimizer_sha256")
