"""mark rolled-back releases

Which releases training was taken back from, when, by whom and why. A mark that is set can neither be taken
away nor changed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

GUARD = """
CREATE FUNCTION release_rollback_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.rolled_back_at IS NOT NULL AND (
        NEW.rolled_back_at IS DISTINCT FROM OLD.rolled_back_at
        OR NEW.rolled_back_by IS DISTINCT FROM OLD.rolled_back_by
        OR NEW.rollback_reason IS DISTINCT FROM OLD.rollback_reason
    ) THEN
        RAISE EXCEPTION 'a release stays rolled back' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER releases_rollback_guard BEFORE UPDATE ON releases
    FOR EACH ROW EXECUTE FUNCTION release_rollback_guard();
"""


def upgrade() -> None:
    op.add_column("releases", sa.Column("rolled_back_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("releases", sa.Column("rolled_back_by", sa.String(length=100), nullable=True))
    op.add_column("releases", sa.Column("rollback_reason", sa.String(), nullable=True))
    op.create_check_constraint(
        op.f("ck_releases_rollback"),
        "releases",
        "num_nulls(rolled_back_at, rolled_back_by, rollback_reason) IN (0, 3)",
    )
    op.execute(GUARD)


def downgrade() -> None:
    op.execute("DROP TRIGGER releases_rollback_guard ON releases; DROP FUNCTION release_rollback_guard()")
    op.drop_constraint(op.f("ck_releases_rollback"), "releases")
    op.drop_column("releases", "rollback_reason")
    op.drop_column("releases", "rolled_back_by")
    op.drop_column("releases", "rolled_back_at")
