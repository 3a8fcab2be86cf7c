"""remember what clients have sent

Clients' mean updates over a run's rounds, by which the default rule tells neighbours.
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "update_means",
        sa.Column("round_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("organisation_id", sa.Uuid(), nullable=False),
        sa.Column("blob_sha256", sa.String(64), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.CheckConstraint("weight >= 1", name=op.f("ck_update_means_weight")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_update_means_round_id_rounds")),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_update_means_client_id_clients")
        ),
        sa.ForeignKeyConstraint(
            ["organisation_id"],
            ["organisations.id"],
            name=op.f("fk_update_means_organisation_id_organisations"),
        ),
        sa.PrimaryKeyConstraint("round_id", "client_id", name=op.f("pk_update_means")),
    )
    op.create_index(op.f("ix_update_means_client_id"), "update_means", ["client_id"])


def downgrade() -> None:
    op.execute(
        "DELETE FROM blob_keys USING update_means WHERE blob_keys.tenant_id = update_means.organisation_id "
        "AND blob_keys.sha256 = update_means.blob_sha256"
    )  # without a key the sweep removes the bytes
    op.drop_index(op.f("ix_update_means_client_id"), "update_means")
    op.drop_table("update_means")
