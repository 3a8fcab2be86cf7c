"""hold buffers to participations

An update says from which round's adapter it was trained where that may be another than its own, and how many
updates of a run one client has begun is counted and limited by the database. The limit is that of the frozen
manifest: an update over it is refused whoever inserts it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COUNT = """
CREATE FUNCTION count_participation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE run_clients SET
        participations = run_clients.participations + 1,
        participation_cap = (runs.manifest -> 'buffered' ->> 'participations')::bigint
    FROM rounds JOIN runs ON runs.id = rounds.run_id
    WHERE rounds.id = NEW.round_id AND run_clients.run_id = runs.id
        AND run_clients.client_id = NEW.client_id;
    RETURN NULL;
END $$;
CREATE TRIGGER updates_count AFTER INSERT ON updates
    FOR EACH ROW EXECUTE FUNCTION count_participation();
"""
GUARD = """
CREATE FUNCTION participation_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.participations < OLD.participations THEN
        RAISE EXCEPTION 'participations never shrink' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER run_clients_guard BEFORE UPDATE ON run_clients
    FOR EACH ROW EXECUTE FUNCTION participation_guard();
CREATE FUNCTION update_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.client_id <> OLD.client_id OR NEW.declared_sha256 <> OLD.declared_sha256
        OR NEW.base_round_id IS DISTINCT FROM OLD.base_round_id THEN
        RAISE EXCEPTION 'whose update it is, and of which bytes, is fixed' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.round_id <> OLD.round_id AND (OLD.state <> 'receiving' OR OLD.base_round_id IS NULL) THEN
        RAISE EXCEPTION 'an update that is part of a round stays there' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER updates_guard BEFORE UPDATE ON updates
    FOR EACH ROW EXECUTE FUNCTION update_guard();
"""


def upgrade() -> None:
    op.add_column("updates", sa.Column("base_round_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_updates_base_round_id_rounds"), "updates", "rounds", ["base_round_id"], ["id"]
    )
    op.create_unique_constraint(
        op.f("uq_updates_base_round_id_client_id"), "updates", ["base_round_id", "client_id"]
    )
    op.add_column(
        "run_clients",
        sa.Column("participations", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column("run_clients", sa.Column("participation_cap", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_run_clients_participations"), "run_clients", "participations <= participation_cap"
    )
    op.execute(COUNT)
    op.execute(GUARD)


def downgrade() -> None:
    op.execute("DROP TRIGGER updates_guard ON updates; DROP FUNCTION update_guard()")
    op.execute("DROP TRIGGER run_clients_guard ON run_clients; DROP FUNCTION participation_guard()")
    op.execute("DROP TRIGGER updates_count ON updates; DROP FUNCTION count_participation()")
    op.drop_constraint(op.f("ck_run_clients_participations"), "run_clients", type_="check")
    op.drop_column("run_clients", "participation_cap")
    op.drop_column("run_clients", "participations")
    op.drop_constraint(op.f("uq_updates_base_round_id_client_id"), "updates", type_="unique")
    op.drop_constraint(op.f("fk_updates_base_round_id_rounds"), "updates", type_="foreignkey")
    op.drop_column("updates", "base_round_id")
