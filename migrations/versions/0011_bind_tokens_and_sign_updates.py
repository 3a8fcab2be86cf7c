"""bind tokens and sign updates

Proofs of possession that were used, client certificates, and the signature that each update came with.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "used_proofs",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_used_proofs")),
    )
    op.create_index(op.f("ix_used_proofs_ends_at"), "used_proofs", ["ends_at"])
    op.create_table(
        "client_certificates",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("thumbprint", sa.String(43), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_client_certificates_client_id_clients")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_client_certificates")),
        sa.UniqueConstraint("thumbprint", name=op.f("uq_client_certificates_thumbprint")),
    )
    op.create_index(op.f("ix_client_certificates_client_id"), "client_certificates", ["client_id"])
    op.add_column("updates", sa.Column("signature_input", sa.String(1000), nullable=True))
    op.add_column("updates", sa.Column("signature", sa.String(1000), nullable=True))
    op.add_column("updates", sa.Column("signature_nonce", sa.String(100), nullable=True))
    op.create_unique_constraint(
        op.f("uq_updates_client_id_signature_nonce"), "updates", ["client_id", "signature_nonce"]
    )


def downgrade() -> None:
    op.drop_constraint(op.f("uq_updates_client_id_signature_nonce"), "updates")
    for name in ("signature_nonce", "signature", "signature_input"):
        op.drop_column("updates", name)
    op.drop_index(op.f("ix_client_certificates_client_id"), "client_certificates")
    op.drop_table("client_certificates")
    op.drop_index(op.f("ix_used_proofs_ends_at"), "used_proofs")
    op.drop_table("used_proofs")
