"""keep blobs under keys

Keys of regions, tenants and objects, each wrapped under the one above; and whose bytes an update is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

CURRENT = sa.text("retired_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "region_keys",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("region", sa.String(64), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("octet_length(wrapped_key) = 60", name="wrapped_key"),
    )
    op.create_index(
        "uq_region_keys_current", "region_keys", ["region"], unique=True, postgresql_where=CURRENT
    )
    op.create_table(
        "tenant_keys",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("region", sa.String(64), nullable=False),
        sa.Column("region_key_id", sa.Uuid(), sa.ForeignKey("region_keys.id"), nullable=False, index=True),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("octet_length(wrapped_key) = 60", name="wrapped_key"),
    )
    op.create_index(
        "uq_tenant_keys_current",
        "tenant_keys",
        ["tenant_id", "region"],
        unique=True,
        postgresql_where=CURRENT,
    )
    op.create_table(
        "blob_keys",
        sa.Column("object_id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("region", sa.String(64), nullable=False),
        sa.Column("tenant_key_id", sa.Uuid(), sa.ForeignKey("tenant_keys.id"), nullable=False, index=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("put_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.UniqueConstraint("tenant_id", "region", "sha256"),
        sa.CheckConstraint("octet_length(wrapped_key) = 60", name="wrapped_key"),
    )
    op.add_column(
        "updates", sa.Column("organisation_id", sa.Uuid(), sa.ForeignKey("organisations.id"), nullable=True)
    )
    op.execute(
        "UPDATE updates SET organisation_id = clients.organisation_id FROM clients WHERE clients.id = updates.client_id"
    )
    # The earlier release, which may still serve, does not know the column.
    op.execute(
        """
        CREATE FUNCTION updates_have_an_organisation() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.organisation_id IS NULL THEN
                SELECT organisation_id INTO NEW.organisation_id FROM clients WHERE id = NEW.client_id;
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER have_an_organisation BEFORE INSERT ON updates "
        "FOR EACH ROW EXECUTE FUNCTION updates_have_an_organisation()"
    )
    op.alter_column("updates", "organisation_id", nullable=False)


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM blob_keys)")):
        raise RuntimeError("sealed bytes would be lost with their keys: restore a backup of before instead")
    op.execute("DROP TRIGGER have_an_organisation ON updates")
    op.execute("DROP FUNCTION updates_have_an_organisation()")
    op.drop_column("updates", "organisation_id")
    for name in ("blob_keys", "tenant_keys", "region_keys"):
        op.drop_table(name)
