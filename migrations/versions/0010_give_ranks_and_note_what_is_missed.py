"""give ranks and note what is missed

At which LoRA rank a client trains a round, and what of a round's target its adapter could not hold.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("assignments", sa.Column("rank", sa.BigInteger(), nullable=True))
    for name in ("target_norm", "missed_norm"):
        op.add_column("rounds", sa.Column(name, sa.Float(), nullable=True))


def downgrade() -> None:
    for name in ("missed_norm", "target_norm"):
        op.drop_column("rounds", name)
    op.drop_column("assignments", "rank")
