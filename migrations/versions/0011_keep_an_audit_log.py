"""keep an audit log

Entries whose hashes are the leaves of a Merkle tree, the tree, and its signed checkpoints. None of them can
be changed or removed; an entry is given its place in the tree once. Openings of commitments can be deleted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ENTRIES = r"""
CREATE FUNCTION audit_entry_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    placed audit_entries := OLD;
BEGIN
    placed.leaf_index := NEW.leaf_index;
    IF OLD.leaf_index IS NULL AND NEW.leaf_index IS NOT NULL AND NEW IS NOT DISTINCT FROM placed THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'audit entries are append-only, and get their place once' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER audit_entries_placed_once BEFORE UPDATE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION audit_entry_guard();
CREATE FUNCTION audit_key_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.id, NEW.name, NEW.public_key) IS DISTINCT FROM (OLD.id, OLD.name, OLD.public_key) THEN
        RAISE EXCEPTION 'the public half of an audit key is fixed' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_keys_fixed BEFORE UPDATE ON audit_keys
    FOR EACH ROW EXECUTE FUNCTION audit_key_guard();
"""
REFUSED = {
    "audit_entries": "DELETE",
    "audit_personal": "UPDATE",  # an opening may be deleted, never replaced
    "audit_nodes": "UPDATE OR DELETE",
    "audit_checkpoints": "UPDATE OR DELETE",
    "audit_keys": "DELETE",
}
GUARD = """
CREATE TRIGGER {table}_append_only BEFORE {what} ON {table}
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    _create_entries()
    _create_tree()
    op.execute(ENTRIES)
    for table, what in REFUSED.items():
        op.execute(GUARD.format(table=table, what=what))


def _create_entries() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("organisation_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("canonical", sa.LargeBinary(), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "transaction_id",
            sa.BigInteger(),
            server_default=sa.text("pg_current_xact_id()::text::bigint"),
            nullable=False,
        ),
        sa.Column("leaf_index", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            r"leaf_hash = sha256('\x00'::bytea || canonical)",
            name=op.f("ck_audit_entries_leaf_of_these_bytes"),
        ),
        sa.CheckConstraint("octet_length(canonical) <= 8192", name=op.f("ck_audit_entries_bounded")),
        sa.CheckConstraint("leaf_index >= 0", name=op.f("ck_audit_entries_leaf_index")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
        sa.UniqueConstraint("leaf_index", name=op.f("uq_audit_entries_leaf_index")),
    )
    op.create_index(
        "ix_audit_entries_waiting",
        "audit_entries",
        ["transaction_id", "id"],
        postgresql_where=sa.text("leaf_index IS NULL"),
    )
    for name in ("organisation", "action", "subject", "actor"):
        column = "organisation_id" if name == "organisation" else name
        op.create_index(f"ix_audit_entries_{name}", "audit_entries", [column, "id"])
    op.create_index("ix_audit_entries_at", "audit_entries", ["at"], postgresql_using="brin")
    op.create_table(
        "audit_personal",
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("clear", sa.LargeBinary(), nullable=False),
        sa.Column("concealed", sa.Boolean(), nullable=False),
        sa.CheckConstraint("octet_length(salt) = 32", name=op.f("ck_audit_personal_salt")),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["audit_entries.id"], name=op.f("fk_audit_personal_entry_id_audit_entries")
        ),
        sa.PrimaryKeyConstraint("entry_id", "name", name=op.f("pk_audit_personal")),
    )


def _create_tree() -> None:
    op.create_table(
        "audit_nodes",
        sa.Column("level", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("octet_length(hash) = 32", name=op.f("ck_audit_nodes_sha256")),
        sa.CheckConstraint('level > 0 AND "index" >= 0', name=op.f("ck_audit_nodes_place")),
        sa.PrimaryKeyConstraint("level", "index", name=op.f("pk_audit_nodes")),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("octet_length(root) = 32", name=op.f("ck_audit_checkpoints_sha256")),
        sa.CheckConstraint("size > 0", name=op.f("ck_audit_checkpoints_size")),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_audit_checkpoints")),
    )
    op.create_table(
        "audit_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_private_key", sa.LargeBinary(), nullable=False),
        sa.Column("signs_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("octet_length(public_key) = 32", name=op.f("ck_audit_keys_ed25519_key")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_keys")),
    )
    op.create_index(
        "uq_audit_keys_current",
        "audit_keys",
        [sa.text("(true)")],
        unique=True,
        postgresql_where=sa.text("signs_until IS NULL"),
    )


def downgrade() -> None:
    for table in ("audit_keys", "audit_checkpoints", "audit_nodes", "audit_personal", "audit_entries"):
        op.drop_table(table)
    op.execute("DROP FUNCTION audit_key_guard(); DROP FUNCTION audit_entry_guard()")
