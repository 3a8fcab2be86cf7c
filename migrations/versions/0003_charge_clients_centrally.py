"""charge clients centrally

What privacy added by the server needs: accounts that say which unit they protect, ceilings of organisations,
rounds with a secret cohort, a round's noise secret, and a book of privacy violations.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KINDS = (
    "missing_noise",
    "scaled_noise",
    "price_differs",
    "ceiling_hit",
    "bound_exceeded",
    "no_consent",
    "residency",
)

ACCOUNT_GUARD = """
CREATE OR REPLACE FUNCTION account_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'accounts outlive everything: DELETE is refused' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.kind <> OLD.kind OR NEW."order" IS DISTINCT FROM OLD."order" OR NEW.population <> OLD.population
        OR NEW.organisation_id <> OLD.organisation_id{unit} THEN
        RAISE EXCEPTION 'an account''s kind, order and population are fixed' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.spent < OLD.spent OR NEW.delta_spent < OLD.delta_spent OR NEW.ceiling < OLD.ceiling
        OR NEW.delta_ceiling < OLD.delta_ceiling THEN
        RAISE EXCEPTION 'spent and granted never shrink' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
"""
ROUND_GUARD = """
CREATE FUNCTION round_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.cohort_secret <> OLD.cohort_secret OR NEW.clip_norm IS DISTINCT FROM OLD.clip_norm
        OR OLD.next_clip_norm IS NOT NULL AND NEW.next_clip_norm IS DISTINCT FROM OLD.next_clip_norm THEN
        RAISE EXCEPTION 'a round''s privacy is fixed when it is planned' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER rounds_guard BEFORE UPDATE ON rounds
    FOR EACH ROW EXECUTE FUNCTION round_guard();
"""
WRITTEN_ONCE = """
CREATE TRIGGER round_secrets_no_update BEFORE UPDATE ON round_secrets
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""
BOOK_GUARD = """
CREATE TRIGGER privacy_violations_append_only BEFORE UPDATE OR DELETE ON privacy_violations
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER privacy_violations_no_truncate BEFORE TRUNCATE ON privacy_violations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    op.add_column(
        "accounts", sa.Column("unit", sa.String(length=32), server_default="example", nullable=False)
    )
    op.create_check_constraint("accountunit", "accounts", "unit IN ('example', 'person', 'client')")
    op.add_column("organisations", sa.Column("epsilon_ceiling", sa.Double(), nullable=True))
    op.create_check_constraint("epsilon_ceiling", "organisations", "epsilon_ceiling > 0")
    op.add_column(
        "rounds", sa.Column("cohort_secret", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("rounds", sa.Column("clip_norm", sa.Double(), nullable=True))
    op.add_column("rounds", sa.Column("next_clip_norm", sa.Double(), nullable=True))
    op.drop_constraint("quorum", "rounds", type_="check")
    op.create_check_constraint("quorum", "rounds", "max_updates >= min_updates AND min_updates >= 0")
    op.create_check_constraint("noised_once", "rounds", "NOT cohort_secret OR clip_norm IS NOT NULL")
    _create_round_secrets()
    _create_privacy_violations()
    op.execute(ACCOUNT_GUARD.format(unit=" OR NEW.unit <> OLD.unit"))
    op.execute(ROUND_GUARD)
    op.execute(WRITTEN_ONCE)
    op.execute(BOOK_GUARD)


def _create_round_secrets() -> None:
    op.create_table(
        "round_secrets",
        sa.Column("round_id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_round_secrets_round_id_rounds")),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_round_secrets")),
    )


def _create_privacy_violations() -> None:
    op.create_table(
        "privacy_violations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(*KINDS, name="violationkind", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("organisation_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["organisation_id"],
            ["organisations.id"],
            name=op.f("fk_privacy_violations_organisation_id_organisations"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_privacy_violations_run_id_runs")),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_privacy_violations_client_id_clients")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_privacy_violations")),
    )
    op.create_index(
        op.f("ix_privacy_violations_organisation_id"), "privacy_violations", ["organisation_id"], unique=False
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_privacy_violations_organisation_id"), table_name="privacy_violations")
    op.drop_table("privacy_violations")
    op.drop_table("round_secrets")
    op.execute("DROP TRIGGER rounds_guard ON rounds; DROP FUNCTION round_guard()")
    op.execute(ACCOUNT_GUARD.format(unit=""))
    op.drop_constraint("noised_once", "rounds", type_="check")
    op.drop_constraint("quorum", "rounds", type_="check")
    op.create_check_constraint(
        "quorum", "rounds", "max_updates >= min_updates AND min_updates >= 1", postgresql_not_valid=True
    )
    op.drop_column("rounds", "next_clip_norm")
    op.drop_column("rounds", "clip_norm")
    op.drop_column("rounds", "cohort_secret")
    op.drop_constraint("epsilon_ceiling", "organisations", type_="check")
    op.drop_column("organisations", "epsilon_ceiling")
    op.drop_constraint("accountunit", "accounts", type_="check")
    op.drop_column("accounts", "unit")
