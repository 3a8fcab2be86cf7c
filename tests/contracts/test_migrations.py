"""The migrations make exactly the tables that the models describe."""

import os

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from app.budget import audits
from app.core.db import Database
from app.core.ids import new_id
from app.rounds import states as round_states
from app.runs import states as run_states
from app.schema import metadata
from migrations.upgrade import alembic_config, upgrade
from tests.builders import build_run
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


def test_former_audits_count_for_the_manifest_that_was_frozen_before_them(
    database: Database, database_url: str
) -> None:
    with database.run_tx("test") as session:
        run = build_run(session, clients=0)
        run.manifest_sha256, run.started_at = "f" * 64, sa.func.now()
    command.downgrade(alembic_config(database_url), "0004")
    insert = sa.text(
        "INSERT INTO privacy_audits (id, organisation_id, run_id, refuted, report, at) VALUES "
        "(:id, :organisation_id, :run_id, true, '{}', now() + make_interval(hours => :hours))"
    )
    with database.run_tx("test") as session:
        for hours in (-1, 1):
            owner = {"organisation_id": run.organisation_id, "run_id": run.id}
            session.execute(insert, owner | {"id": new_id(), "hours": hours})
    upgrade(database_url)
    with database.run_tx("test") as session:
        found = session.scalars(sa.text("SELECT manifest_sha256 FROM privacy_audits ORDER BY at")).all()
        assert found == [None, "f" * 64]
        assert audits.is_refuted(session, run.id, "f" * 64)
    with pytest.raises(DBAPIError), database.run_tx("test") as session:
        session.execute(sa.text("UPDATE privacy_audits SET refuted = false"))
