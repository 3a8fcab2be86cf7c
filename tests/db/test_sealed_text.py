"""Sealed columns: found by what they hold, readable with the key alone, and bound to their row and kind."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, composite, mapped_column

from app.core.crypto import SealBroken, Vault
from app.core.sealed import SealedText, TextSeal, normal_email

VAULT = Vault(bytes(range(32)))
EMAIL = TextSeal("member-email", normal=normal_email)
ADA = "Ada@Example.org"


class OwnBase(DeclarativeBase):
    """Not the product's: its tables are compared with the migrations."""


class Person(OwnBase):
    __tablename__ = "people_of_this_test"
    id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    email: Mapped[SealedText] = composite(
        mapped_column("email_sealed", sa.LargeBinary),
        mapped_column("email_lookup", sa.LargeBinary, unique=True),
    )


@pytest.fixture
def table(session: Session) -> Iterator[sa.Table]:
    OwnBase.metadata.create_all(session.connection())
    yield Person.metadata.tables["people_of_this_test"]
    session.rollback()


def add(session: Session, text: str) -> Person:
    row_id = uuid4()
    row = Person(id=row_id, email=EMAIL.seal(VAULT, text, row=row_id))
    session.add(row)
    session.flush()
    return row


def found(session: Session, table: sa.Table, text: str) -> list[UUID]:
    return list(
        session.scalars(sa.select(table.c.id).where(table.c.email_lookup == EMAIL.lookup(VAULT, text)))
    )


def test_a_text_is_found_however_it_is_written_and_comes_back_as_it_was(
    session: Session, table: sa.Table
) -> None:
    row = add(session, ADA)
    for written in (ADA, "ada@example.org", "  ADA@EXAMPLE.ORG ", "\uff21da@example.org"):
        assert found(session, table, written) == [row.id]
    assert found(session, table, "adam@example.org") == []
    session.expire_all()
    assert EMAIL.open(VAULT, session.get_one(Person, row.id).email, row=row.id) == ADA


def test_the_table_holds_nothing_of_a_text_and_equal_texts_are_one(session: Session, table: sa.Table) -> None:
    add(session, ADA)
    (raw,) = session.execute(sa.select(table.c.email_sealed, table.c.email_lookup)).all()
    for form in (ADA, ADA.lower()):
        assert all(form.encode() not in value for value in raw)
    with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
        add(session, ADA.upper())


def test_a_text_opens_for_its_own_row_kind_and_key_alone() -> None:
    row = uuid4()
    value = EMAIL.seal(VAULT, ADA, row=row)
    others = [
        lambda: EMAIL.open(VAULT, value, row=uuid4()),
        lambda: TextSeal("second-factor").open(VAULT, value, row=row),
        lambda: EMAIL.open(Vault(bytes(32)), value, row=row),
        lambda: EMAIL.open(VAULT, SealedText(value.sealed[:-1], value.lookup), row=row),
    ]
    for act in others:
        with pytest.raises(SealBroken):
            act()


def test_a_hash_tells_nothing_without_the_key_and_is_of_one_kind() -> None:
    own = EMAIL.lookup(VAULT, ADA)
    assert len(own) == 32
    assert own != EMAIL.lookup(Vault(bytes(32)), ADA)
    assert own != TextSeal("other", normal=normal_email).lookup(VAULT, ADA)


def test_the_same_text_is_sealed_differently_each_time_and_never_printed() -> None:
    row = uuid4()
    one, other = EMAIL.seal(VAULT, ADA, row=row), EMAIL.seal(VAULT, ADA, row=row)
    assert one.sealed != other.sealed
    assert repr(one) == "SealedText()"
