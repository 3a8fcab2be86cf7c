"""score events and keep where clients enrolled

How sure one is of a security event; as a keyed hash, the network that a training client enrolled from; and
when a client first asked for a round's adapter.
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("security_events", sa.Column("score", sa.Float(), server_default="0.5", nullable=False))
    op.create_check_constraint(op.f("ck_security_events_score"), "security_events", "score BETWEEN 0 AND 1")
    op.add_column("assignments", sa.Column("adapter_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("clients", sa.Column("enrolled_from", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    op.drop_column("clients", "enrolled_from")
    op.drop_column("assignments", "adapter_at")
    op.drop_constraint(op.f("ck_security_events_score"), "security_events")
    op.drop_column("security_events", "score")
