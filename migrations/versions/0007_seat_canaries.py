"""seat canaries

Which canaries of a run are in its rounds, and how all of them score, until the run is over.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

GUARD = """
CREATE FUNCTION round_canaries_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.scores IS NOT NULL OR NEW.drawn IS DISTINCT FROM OLD.drawn OR NEW.round_id <> OLD.round_id THEN
        RAISE EXCEPTION 'a round''s canaries are drawn and scored once' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER round_canaries_guard BEFORE UPDATE ON round_canaries
    FOR EACH ROW EXECUTE FUNCTION round_canaries_guard();
"""


def upgrade() -> None:
    op.create_table(
        "round_canaries",
        sa.Column("round_id", sa.Uuid(), nullable=False),
        sa.Column("drawn", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("scores", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_round_canaries_round_id_rounds")),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_round_canaries")),
    )
    op.execute(GUARD)


def downgrade() -> None:
    op.drop_table("round_canaries")
    op.execute("DROP FUNCTION round_canaries_guard()")
