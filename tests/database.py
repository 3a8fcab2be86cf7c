"""Fixtures on the run's PostgreSQL: a migrated template per xdist worker, and two ways to use it.

`session` and `api` live in one outer transaction that is rolled back (savepoints inside): quick, and
right for nearly everything. `database` is a fresh clone of the template, for what needs true commits:
races, NOTIFY, processes.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from app.core.db import Database
from app.core.logs import configure_logs
from app.core.settings import Environment, Settings
from app.main import build_app, install_state
from migrations.upgrade import upgrade
from tests.services import DATABASE_VARIABLE

TEST_MASTER_KEY = base64.b64encode(bytes(range(32))).decode()


def _with_name(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _admin(statement: str) -> None:
    dsn = make_url(os.environ[DATABASE_VARIABLE]).set(drivername="postgresql")
    with psycopg.connect(dsn.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]  # names are made here


@pytest.fixture(scope="session")
def template_name() -> Iterator[str]:
    """A migrated database of this worker that nobody connects to."""
    name = f"template_{secrets.token_hex(6)}"
    _admin(f"CREATE DATABASE {name}")
    upgrade(_with_name(os.environ[DATABASE_VARIABLE], name))
    yield name
    _admin(f"DROP DATABASE {name} WITH (FORCE)")


def _clone(template: str) -> str:
    name = f"clone_{secrets.token_hex(6)}"
    _admin(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    return name


@pytest.fixture(scope="session")
def shared_engine(template_name: str) -> Iterator[sa.Engine]:
    """One engine on one clone, shared by all tests that roll back."""
    name = _clone(template_name)
    engine = sa.create_engine(_with_name(os.environ[DATABASE_VARIABLE], name))
    yield engine
    engine.dispose()
    _admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(shared_engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose outer transaction is rolled back at the end."""
    with shared_engine.connect() as connection:
        transaction = connection.begin()
        yield connection
        transaction.rollback()


class RolledBackDatabase(Database):
    """A Database whose every transaction is a savepoint of one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self.engine = connection.engine
        self.sessions = sessionmaker(
            bind=connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        )


@pytest.fixture
def rolled_back(connection: sa.Connection) -> Database:
    """The database that `session` and `api` share."""
    return RolledBackDatabase(connection)


@pytest.fixture
def session(rolled_back: Database) -> Iterator[Session]:
    """A session in the outer transaction; what it flushes, `api` sees."""
    with rolled_back.sessions() as session:
        yield session


@contextmanager
def clone_of(template: str) -> Iterator[str]:
    """The address of a fresh clone, for as long as the block lasts."""
    name = _clone(template)
    yield _with_name(os.environ[DATABASE_VARIABLE], name)
    _admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(template_name: str) -> Iterator[str]:
    """A fresh clone, for true commits."""
    with clone_of(template_name) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A Database on a fresh clone; commits are real."""
    database = Database(database_url, pool_size=20)
    yield database
    database.dispose()


TEST_SETTINGS: dict[str, object] = {
    "master_key": SecretStr(TEST_MASTER_KEY),
    "trusts": ("local", "central", "none"),
    "proof_of_possession": False,
    "hosts": ("testserver",),
}


def settings_for(database_url: str, blob_folder: Path, **values: object) -> Settings:
    """Settings of a test process; without Valkey, whose counts of calls tests would share."""
    return Settings(
        database_url=SecretStr(database_url),
        blob_url=f"file://{blob_folder}",
        environment=Environment.DEVELOPMENT,
        **(TEST_SETTINGS | values),  # type: ignore[arg-type]  # names and types are Settings' own
    )


@pytest.fixture
def settings(template_name: str, tmp_path: Path) -> Settings:
    """Settings for code that opens no connection by itself."""
    return settings_for(_with_name(os.environ[DATABASE_VARIABLE], template_name), tmp_path / "blobs")


@pytest.fixture(scope="session")
def shared_app(template_name: str, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The gateway's routes, which no test changes; what requests use is installed anew for each."""
    url = _with_name(os.environ[DATABASE_VARIABLE], template_name)
    return build_app(settings_for(url, tmp_path_factory.getbasetemp() / "blobs"))


@pytest.fixture
def api(shared_app: FastAPI, settings: Settings, rolled_back: Database) -> Iterator[TestClient]:
    """The gateway on the rolled-back transaction. Its lifespan does not run: no pool, no hub."""
    if not structlog.is_configured():  # a logger that was used keeps to the first; what captures looks there
        configure_logs(settings.environment)
    install_state(shared_app, settings, rolled_back)
    client = TestClient(shared_app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    yield client
    client.close()
    if shared_app.state.settings is not settings:  # a test set its own, which the description may tell of
        shared_app.openapi_schema = None
