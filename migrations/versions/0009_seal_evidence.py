"""seal evidence

What a `central` round saw of single updates, encrypted; and an index by which evidence is found whose time is
over.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sealed_evidence",
        sa.Column("round_id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_sealed_evidence_round_id_rounds")),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_sealed_evidence")),
    )
    for table in ("sealed_evidence", "update_evidence"):
        op.create_index(op.f(f"ix_{table}_at"), table, ["at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_update_evidence_at"), table_name="update_evidence")
    op.drop_table("sealed_evidence")
