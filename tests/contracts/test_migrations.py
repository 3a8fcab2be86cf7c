"""The migrations make exactly the tables that the models describe."""

import os

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from app.rounds import states as round_states
from app.runs import states as run_states
from app.schema import metadata
from migrations.upgrade import alembic_config
from tests.services import DATABASE_VARIABLE


def _engine(name: str) -> sa.Engine:
    return sa.create_engine(make_url(os.environ[DATABASE_VARIABLE]).set(database=name), poolclass=sa.NullPool)


def test_models_equal_migrations(template_name: str) -> None:
    with _engine(template_name).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory.from_config(alembic_config("")).get_heads()) == 1


def test_edge_tables_equal_the_code(connection: sa.Connection) -> None:
    for table, edges in (("run_edges", run_states.EDGES), ("round_edges", round_states.EDGES)):
        rows = connection.execute(sa.text(f"SELECT src, dst FROM {table}")).all()  # noqa: S608  constants
        assert {(src, dst) for src, dst in rows} == {(str(src), str(dst)) for src, dst in edges}
