"""Alembic's environment: time limits and one migrator at a time."""

import sqlalchemy as sa
from alembic import context

from app.schema import metadata


def run() -> None:
    """Apply migrations, each in its own transaction, under an advisory lock."""
    engine = sa.create_engine(context.config.attributes["database_url"], poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text("SET lock_timeout = 4000"))
        connection.execute(sa.text("SET statement_timeout = 5000"))
        connection.execute(sa.text("SELECT pg_advisory_lock(hashtext('dpfl alembic'))"))
        connection.commit()  # the lock is the session's; the settings outlive this transaction
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_server_default=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
