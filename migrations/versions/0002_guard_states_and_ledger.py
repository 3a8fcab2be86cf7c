"""guard states and the ledger

A state log is written by trigger, and its foreign key into the edges refuses a step that does not exist,
whoever makes it. Ledger entries can be added, never changed or removed.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RUN_EDGES = [
    ("new", "draft"),
    ("draft", "pricing"),
    ("pricing", "priced"),
    ("pricing", "refused"),
    ("priced", "running"),
    ("priced", "refused"),
    ("running", "paused"),
    ("paused", "running"),
    ("running", "finished"),
    ("paused", "finished"),
    ("draft", "aborted"),
    ("priced", "aborted"),
    ("running", "aborted"),
    ("paused", "aborted"),
]
ROUND_EDGES = [
    ("new", "planned"),
    ("planned", "open"),
    ("open", "sealed"),
    ("sealed", "aggregating"),
    ("aggregating", "validating"),
    ("validating", "published"),
    ("planned", "aborted"),
    ("open", "aborted"),
    ("sealed", "aborted"),
    ("aggregating", "aborted"),
    ("validating", "aborted"),
]

LOG = """
CREATE FUNCTION {noun}_log_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {noun}_log ({noun}_id, src, dst, actor)
    VALUES (
        NEW.id,
        CASE WHEN TG_OP = 'INSERT' THEN 'new' ELSE OLD.state END,
        NEW.state,
        coalesce(nullif(current_setting('dpfl.actor', true), ''), 'database:' || current_user)
    );
    RETURN NULL;
END $$;
CREATE TRIGGER {noun}_log_on_insert AFTER INSERT ON {table}
    FOR EACH ROW EXECUTE FUNCTION {noun}_log_write();
CREATE TRIGGER {noun}_log_on_step AFTER UPDATE OF state ON {table}
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION {noun}_log_write();
"""

APPEND_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'check_violation';
END $$;
"""
NO_CHANGE = """
CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
GUARDED = ("ledger_entries", "run_log", "round_log", "run_edges", "round_edges")

ACCOUNT = """
CREATE FUNCTION account_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'accounts outlive everything: DELETE is refused' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.kind <> OLD.kind OR NEW."order" IS DISTINCT FROM OLD."order" OR NEW.population <> OLD.population
        OR NEW.organisation_id <> OLD.organisation_id THEN
        RAISE EXCEPTION 'an account''s kind, order and population are fixed' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.spent < OLD.spent OR NEW.delta_spent < OLD.delta_spent OR NEW.ceiling < OLD.ceiling
        OR NEW.delta_ceiling < OLD.delta_ceiling THEN
        RAISE EXCEPTION 'spent and granted never shrink' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER accounts_guard BEFORE UPDATE OR DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION account_guard();
CREATE TRIGGER accounts_no_truncate BEFORE TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

FROZEN_MANIFEST = """
CREATE FUNCTION manifest_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.manifest_sha256 IS NOT NULL AND (
        NEW.manifest IS DISTINCT FROM OLD.manifest OR NEW.manifest_sha256 IS DISTINCT FROM OLD.manifest_sha256
        OR NEW.price IS DISTINCT FROM OLD.price
    ) THEN
        RAISE EXCEPTION 'a started run''s manifest is fixed' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER runs_manifest_guard BEFORE UPDATE ON runs
    FOR EACH ROW EXECUTE FUNCTION manifest_guard();
"""


def _rows(edges: list[tuple[str, str]]) -> str:
    return ", ".join(f"('{src}', '{dst}')" for src, dst in edges)


def upgrade() -> None:
    op.execute(f"INSERT INTO run_edges (src, dst) VALUES {_rows(RUN_EDGES)}")  # noqa: S608  constants above
    op.execute(f"INSERT INTO round_edges (src, dst) VALUES {_rows(ROUND_EDGES)}")  # noqa: S608
    op.execute(LOG.format(noun="run", table="runs"))
    op.execute(LOG.format(noun="round", table="rounds"))
    op.execute(APPEND_ONLY)
    for table in GUARDED:
        op.execute(NO_CHANGE.format(table=table))
    op.execute(ACCOUNT)
    op.execute(FROZEN_MANIFEST)


def downgrade() -> None:
    for table in GUARDED:
        op.execute(
            f"DROP TRIGGER {table}_append_only ON {table}; DROP TRIGGER {table}_no_truncate ON {table}"
        )
    op.execute("DROP TRIGGER runs_manifest_guard ON runs; DROP FUNCTION manifest_guard()")
    op.execute("DROP TRIGGER accounts_guard ON accounts; DROP TRIGGER accounts_no_truncate ON accounts")
    op.execute("DROP FUNCTION account_guard(); DROP FUNCTION refuse_change()")
    for noun, table in (("run", "runs"), ("round", "rounds")):
        op.execute(
            f"DROP TRIGGER {noun}_log_on_insert ON {table}; DROP TRIGGER {noun}_log_on_step ON {table}"
        )
        op.execute(f"DROP FUNCTION {noun}_log_write()")
        op.execute(f"DELETE FROM {noun}_edges")  # noqa: S608  constants
