"""An act and its entry are one transaction; entries and what is built on them cannot be changed."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app import __main__ as command
from app.audit import keys
from app.audit.models import AuditEntry, AuditPersonal
from app.audit.record import Action, commitment, erase, record
from app.core.db import Database
from app.core.ids import new_id
from app.core.settings import Settings
from tests.audit_log import place_all
from tests.builders import build_organisation
from tests.database import settings_for


def note(session: Session, **values: Any) -> UUID:
    terms = {"action": Action.RUN_STARTED, "actor": "member:1", "organisation_id": None, "subject": "run:1"}
    return record(session, **(terms | values))


def entry_of(session: Session, entry_id: UUID) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(session.get_one(AuditEntry, entry_id).canonical)
    return found


def test_an_entry_is_there_exactly_if_the_act_is(database: Database) -> None:
    def act(session: Session, *, divisor: int) -> None:
        build_organisation(session)
        note(session)
        assert 1 / divisor

    with pytest.raises(ZeroDivisionError), database.run_tx("test") as session:
        act(session, divisor=0)
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(AuditEntry)) == 0
        act(session, divisor=1)
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(AuditEntry)) == 1


def test_the_leaf_is_the_hash_of_the_entrys_one_byte_form(session: Session) -> None:
    organisation_id = new_id()
    entry_id = note(
        session,
        organisation_id=organisation_id,
        details={"rounds": 2, "codes": ["a", "b"], "plan": {"charged": True, "none": None}},
    )
    row = session.get_one(AuditEntry, entry_id)
    entry = json.loads(row.canonical)
    assert row.canonical == json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    assert row.leaf_hash == sha256(b"\x00" + row.canonical).digest()
    assert row.leaf_index is None
    assert len(bytes.fromhex(entry.pop("nonce"))) == 16
    assert entry == {
        "version": 1,
        "id": str(entry_id),
        "at": row.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "actor": "member:1",
        "organisation_id": str(organisation_id),
        "action": "run.started",
        "subject": "run:1",
        "details": {"rounds": 2, "codes": ["a", "b"], "plan": {"charged": True, "none": None}},
        "commitments": {},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"details": {"epsilon": 8.0}},
        {"details": {"count": 2**53}},
        {"details": {"Name": 1}},
        {"details": {"text": "a" * 201}},
        {"details": {"deep": {"deeper": {"deepest": {"a": object()}}}}},
        {"details": {f"member_{number}": "a" * 200 for number in range(50)}},
        {"action": "run.invented"},
        {"subject": "run"},
        {"subject": "run:a b"},
        {"committed": {"name": "a"}, "concealed": {"name": "b"}},
        {"committed": {"two words": "a"}},
    ],
)
def test_what_no_leaf_may_hold_is_refused(session: Session, wrong: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        note(session, **wrong)
    assert session.scalar(sa.select(sa.func.count()).select_from(AuditEntry)) == 0


def test_unseen_characters_are_written_out(session: Session) -> None:
    entry_id = note(session, details={"code": "a\r\nb\x1b[2J\u202ec\u2028d\ud800"})
    assert entry_of(session, entry_id)["details"]["code"] == (
        r"a\u{d}\u{a}b\u{1b}[2J\u{202e}c\u{2028}d\u{d800}"
    )


def test_a_committed_value_is_in_no_leaf_and_can_be_opened_until_it_is_erased(session: Session) -> None:
    entry_id = note(session, committed={"name": "Ada"}, concealed={"digest": "0" * 64})
    row = session.get_one(AuditEntry, entry_id)
    assert b"Ada" not in row.canonical
    assert b"0" * 64 not in row.canonical
    named = json.loads(row.canonical)["commitments"]
    opening = session.get_one(AuditPersonal, (entry_id, "name"))
    assert (opening.clear, opening.concealed) == (b'"Ada"', False)
    assert commitment("name", opening.salt, opening.clear).hex() == named["name"]
    assert session.get_one(AuditPersonal, (entry_id, "digest")).concealed
    assert erase(session, about="run:1", actor="operator") == 1
    assert erase(session, about="run:1", actor="operator") == 0
    session.expire_all()
    assert session.get(AuditPersonal, (entry_id, "name")) is None
    assert session.get(AuditPersonal, (entry_id, "digest")) is not None
    assert session.get_one(AuditEntry, entry_id).leaf_hash == sha256(b"\x00" + row.canonical).digest()


def test_equal_values_give_unlike_commitments_of_one_length(session: Session) -> None:
    values = ["Ada", "Ada", "a" * 1000, None]
    found = [
        entry_of(session, note(session, committed={"name": one}))["commitments"]["name"] for one in values
    ]
    assert len(set(found)) == 4
    assert {len(one) for one in found} == {64}


COLUMNS = {
    "id": "gen_random_uuid()",
    "at": "now()",
    "actor": "'member:2'",
    "organisation_id": "gen_random_uuid()",
    "action": "'run.paused'",
    "subject": "'run:2'",
    "canonical": "canonical || ''::bytea || '\\x20'::bytea",
    "leaf_hash": "sha256('a')",
    "transaction_id": "1",
}


@pytest.mark.parametrize(("column", "value"), COLUMNS.items())
@pytest.mark.parametrize("placing", [False, True])
def test_no_column_of_an_entry_changes_even_when_it_is_placed(
    session: Session, column: str, value: str, placing: bool
) -> None:
    note(session)
    change = f"UPDATE audit_entries SET {column} = {value}{', leaf_index = 0' * placing}"  # noqa: S608
    with pytest.raises(DBAPIError, match="append-only"):
        session.execute(sa.text(change))


def test_a_place_is_given_once(session: Session) -> None:
    note(session)
    session.execute(sa.text("UPDATE audit_entries SET leaf_index = 0"))
    for again in ("1", "0", "NULL"):
        with pytest.raises(DBAPIError, match="append-only"), session.begin_nested():
            session.execute(sa.text(f"UPDATE audit_entries SET leaf_index = {again}"))  # noqa: S608


def test_two_entries_have_no_place_in_common(session: Session) -> None:
    note(session)
    note(session)
    with pytest.raises(DBAPIError, match="uq_audit_entries_leaf_index"):
        session.execute(sa.text("UPDATE audit_entries SET leaf_index = 0"))


def test_an_entry_whose_hash_is_another_is_refused(session: Session) -> None:
    note(session)
    with pytest.raises(DBAPIError, match="ck_audit_entries_leaf_of_these_bytes"):
        session.execute(
            sa.text(
                "INSERT INTO audit_entries (id, at, actor, action, subject, canonical, leaf_hash) "
                "SELECT gen_random_uuid(), at, actor, action, subject, '{}', leaf_hash FROM audit_entries"
            )
        )


ROWS = (
    "INSERT INTO audit_nodes VALUES (1, 0, sha256('a'))",
    "INSERT INTO audit_checkpoints (size, root, note) VALUES (1, sha256('a'), 'note')",
    "INSERT INTO audit_keys (id, name, public_key, sealed_private_key) "
    "VALUES (gen_random_uuid(), 'a', sha256('a'), '')",
)


@pytest.mark.parametrize(
    "refused",
    [
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries CASCADE",
        "TRUNCATE audit_personal",
        "UPDATE audit_personal SET clear = '1'",
        "UPDATE audit_nodes SET hash = sha256('b')",
        "DELETE FROM audit_nodes",
        "TRUNCATE audit_nodes",
        "UPDATE audit_checkpoints SET note = ''",
        "DELETE FROM audit_checkpoints",
        "TRUNCATE audit_checkpoints",
        "UPDATE audit_keys SET public_key = sha256('b')",
        "UPDATE audit_keys SET name = 'b'",
        "DELETE FROM audit_keys",
        "TRUNCATE audit_keys",
    ],
)
def test_the_database_refuses_to_change_the_log(session: Session, refused: str) -> None:
    note(session, committed={"name": "Ada"})
    for row in ROWS:
        session.execute(sa.text(row))
    with pytest.raises(DBAPIError, match=r"append-only|is fixed"):
        session.execute(sa.text(refused))


def test_there_is_one_current_key(session: Session) -> None:
    session.execute(sa.text(ROWS[2]))
    with pytest.raises(DBAPIError, match="uq_audit_keys_current"):
        session.execute(sa.text(ROWS[2]))


def test_erasing_takes_what_is_on_a_person_or_by_it_and_leaves_a_trace(session: Session) -> None:
    on, by, other = (
        note(session, subject="member:1", committed={"name": "Ada"}),
        note(session, actor="member:1", committed={"reason": "on leave", "label": "laptop"}),
        note(session, subject="member:2", actor="member:2", committed={"name": "Grace"}),
    )
    assert erase(session, about="member:1", actor="operator") == 3
    kept = session.scalars(sa.select(AuditPersonal.entry_id)).all()
    assert kept == [other]
    assert {on, by}.isdisjoint(kept)
    erased = session.scalars(sa.select(AuditEntry).where(AuditEntry.action == "audit.erased")).one()
    assert json.loads(erased.canonical)["details"] == {"values": 3}
    assert (erased.subject, erased.actor) == ("member:1", "operator")


def test_the_operators_commands_rotate_and_erase(
    database: Database,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_for(database_url, tmp_path)
    monkeypatch.setattr(Settings, "load", lambda: settings)

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["app", *words])
        command.main()
        return capsys.readouterr().out

    assert run("rotate-audit-key") == "there is no key yet\n"
    with database.run_tx("test") as session:
        note(session, subject="member:1", committed={"name": "Ada"})
    place_all(database)
    told = run("rotate-audit-key")
    with database.run_tx("test") as session:
        assert told == f"the new key: {keys.public_keys(session)[0].public_key.hex()}\n"
    assert run("erase-audit", "member:1") == "1 values erased; the log stays valid\n"
    place_all(database)
    monkeypatch.setattr("sys.argv", ["app", "erase-audit", "no subject"])
    with pytest.raises(SystemExit, match="nothing was done"):
        command.main()
