"""PostgreSQL: the declarative base, the engine, and `run_tx`, one of the only two places that commit.

The other is app/http/deps.py. A contract test forbids `.commit(` and `.begin(` everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

NOTICE_LOSS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""libpq's parameters for every connection, the listening ones included: silence is noticed in 30 s."""
_LONGEST_IDLE_S = 60
"""After so long the server ends a transaction in which nothing happens: its process stands still, or is on
a host that is gone, and holds locks that everybody waits for."""

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The declarative base; constraint names are derived, so that migrations can name them."""

    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy's own protocol
        datetime: sa.DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        bytes: sa.LargeBinary,
        int: sa.BigInteger,
        UUID: sa.Uuid,
    }


def enum_type(kind: type[StrEnum]) -> sa.Enum:
    """Store a StrEnum by its values, as text with a CHECK (adding a value is then a plain migration)."""
    return sa.Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        length=32,
        name=kind.__name__.lower(),
        values_callable=lambda members: [member.value for member in members],
    )


class Database:
    """One process's engine. Threads and connections are equal in number, without overflow."""

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        self.engine = sa.create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_pre_ping=True,
            hide_parameters=True,  # errors are logged, and what is stored is nobody's business there
            connect_args=NOTICE_LOSS
            | {"options": f"-c idle_in_transaction_session_timeout={_LONGEST_IDLE_S}s"},
        )
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def run_tx(self, name: str) -> Iterator[Session]:
        """Open one named transaction for work that is not an HTTP request; commit it on leaving.

        The name is the connection's application_name for its length: pg_stat_activity then tells who
        holds a lock.
        """
        with self.sessions() as session, session.begin():
            session.execute(sa.select(sa.func.set_config("application_name", f"dpfl {name}", True)))
            yield session

    def dispose(self) -> None:
        """Close the pool."""
        self.engine.dispose()


def act_as(session: Session, actor: str) -> None:
    """Tell the database who acts, until the transaction ends; the state logs' triggers write it down."""
    session.execute(sa.select(sa.func.set_config("dpfl.actor", actor, True)))


def notify(session: Session, channel: str, payload: str) -> None:
    """Wake the listeners of a channel when, and only when, this transaction commits."""
    session.execute(sa.select(sa.func.pg_notify(channel, payload)))
