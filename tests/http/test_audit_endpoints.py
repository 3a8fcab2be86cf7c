"""The audit log over HTTP: who reads what, and that every proof it gives holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.audit import keys, merkle
from app.audit.checkpoint import PublicKey, verified
from app.audit.models import AuditCheckpoint
from app.audit.record import Action, commitment, erase, record
from app.core import clock
from app.core.canonical import canonical_bytes
from app.core.db import Database
from app.core.ids import new_id
from app.identity.roles import Role
from app.main import build_app
from tests.audit_log import ORIGIN, place_all
from tests.builders import build_client, principal_of
from tests.database import settings_for
from tests.http.accounts import VAULT, Caller, add_caller, client_headers


def note(session: Session, organisation_id: UUID | None, *, actor: str = "member:1", **more: object) -> UUID:
    terms = {"action": Action.RUN_STARTED, "subject": "run:1"} | more
    return record(session, actor=actor, organisation_id=organisation_id, **terms)  # type: ignore[arg-type]


def ids(api: TestClient, caller: Caller, query: str = "") -> list[str]:
    answer = api.get(f"/v1/audit/entries?limit=200{query}", headers=caller.headers)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.VIEWER])
def test_the_log_is_for_auditors_privacy_officers_and_administrators(
    api: TestClient, session: Session, role: Role
) -> None:
    caller = add_caller(session, role)
    for path in ("entries", f"entries/{new_id()}", "proofs/inclusion?index=0&size=1", "export"):
        answer = api.get(f"/v1/audit/{path}", headers=caller.headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.PRIVACY_OFFICER])
def test_an_organisation_reads_its_own_entries_alone(api: TestClient, session: Session, role: Role) -> None:
    caller, other = add_caller(session, role), add_caller(session, role)
    own, foreign, nobodys = (
        note(session, owner) for owner in (caller.organisation_id, other.organisation_id, None)
    )
    assert str(own) in ids(api, caller)
    assert not {str(foreign), str(nobodys)} & set(ids(api, caller))
    for hidden in (foreign, nobodys, new_id()):
        answer = api.get(f"/v1/audit/entries/{hidden}", headers=caller.headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    admin = add_caller(session)
    assert {str(own), str(foreign), str(nobodys)} <= set(ids(api, admin))


def test_a_training_client_reads_what_it_did_itself(api: TestClient, session: Session) -> None:
    client = build_client(session)
    principal = principal_of(client)
    add_caller(session)
    own = note(session, client.organisation_id, actor=principal.actor)
    note(session, client.organisation_id)
    headers = client_headers(api.app, principal)  # type: ignore[arg-type]  # it is our FastAPI
    listed = api.get("/v1/audit/entries", headers=headers).json()["items"]
    assert [one["id"] for one in listed] == [str(own)]
    assert api.get("/v1/audit/export", headers=headers).status_code == 403


def test_entries_are_found_by_act_subject_actor_and_time(api: TestClient, session: Session) -> None:
    caller = add_caller(session, Role.AUDITOR)
    owner = caller.organisation_id
    early = note(session, owner)
    with clock.shifted(timedelta(hours=1)):
        late = note(session, owner, actor="member:2", action=Action.RUN_PAUSED, subject="run:2")
        middle = (clock.now() - timedelta(minutes=30)).isoformat().replace("+", "%2B")
    for query, found in (
        ("&action=run.paused", [late]),
        ("&subject=run:1", [early]),
        ("&actor=member:2", [late]),
        (f"&since={middle}", [late]),
        ("&subject=run:1&action=run.paused", []),
    ):
        assert ids(api, caller, query) == [str(one) for one in found], query
    assert str(late) not in ids(api, caller, f"&until={middle}")
    assert ids(api, caller)[:2] == [str(late), str(early)]  # newest first
    page = api.get("/v1/audit/entries?limit=1", headers=caller.headers).json()
    again = api.get(f"/v1/audit/entries?limit=1&cursor={page['next_cursor']}", headers=caller.headers).json()
    assert [one["items"][0]["id"] for one in (page, again)] == [str(late), str(early)]


@pytest.mark.parametrize(
    "query",
    [
        "action=run.invented",
        "subject=%00",
        "subject=a%0Ab",
        "since=2026-01-01T00:00:00",
        "until=1790000000",  # seconds since 1970: another century, if they were milliseconds
        "limit=0",
        "limit=201",
    ],
)
def test_a_filter_that_is_none_is_refused(api: TestClient, session: Session, query: str) -> None:
    caller = add_caller(session, Role.AUDITOR)
    assert api.get(f"/v1/audit/entries?{query}", headers=caller.headers).status_code == 422


def test_openings_are_shown_until_they_are_erased_and_concealed_ones_never(
    api: TestClient, session: Session
) -> None:
    caller = add_caller(session, Role.AUDITOR)
    entry_id = note(
        session, caller.organisation_id, committed={"name": "Ada"}, concealed={"digest": "secret"}
    )
    path = f"/v1/audit/entries/{entry_id}"
    shown = api.get(path, headers=caller.headers).json()
    assert set(shown["entry"]["commitments"]) == {"name", "digest"}
    assert set(shown["openings"]) == {"name"}
    salt, value = bytes.fromhex(shown["openings"]["name"]["salt"]), shown["openings"]["name"]["value"]
    assert commitment("name", salt, canonical_bytes(value)).hex() == shown["entry"]["commitments"]["name"]
    assert erase(session, about="run:1", actor="operator") == 1
    after = api.get(path, headers=caller.headers).json()
    assert after["openings"] == {}
    assert after["canonical"] == shown["canonical"]
    assert "secret" not in str(shown)


def test_an_empty_log_says_so(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    for path in ("checkpoint", "export"):
        answer = api.get(f"/v1/audit/{path}", headers=admin.headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "log_empty")
        assert answer.headers["retry-after"] == "2"
    assert api.get("/v1/audit/keys").json() == {"keys": []}


@pytest.fixture
def gateway(database: Database, database_url: str, tmp_path: Path) -> Iterator[TestClient]:
    """The whole gateway with its hub, on true commits."""
    app = build_app(settings_for(database_url, tmp_path / "blobs", pool_size=4))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_a_receipt_holds_for_whoever_has_the_key_alone(gateway: TestClient, database: Database) -> None:
    with database.run_tx("test") as session:
        caller = add_caller(session, Role.AUDITOR)
        entry_ids = [note(session, caller.organisation_id) for _number in range(5)]
    waiting = gateway.get(f"/v1/audit/entries/{entry_ids[0]}", headers=caller.headers).json()
    assert waiting["receipt"] is None
    assert waiting["entry"]["leaf_index"] is None
    size = place_all(database)
    (key,) = gateway.get("/v1/audit/keys").json()["keys"]
    known = PublicKey(key["name"], bytes.fromhex(key["public_key"]))
    assert (key["name"], key["verifier_key"], key["signs_until"]) == (ORIGIN, known.text, None)
    for entry_id in entry_ids:
        shown = gateway.get(f"/v1/audit/entries/{entry_id}", headers=caller.headers).json()
        receipt = shown["receipt"]
        signed = verified(receipt["checkpoint"], [known], by_all=True)
        at = {"index": receipt["leaf_index"], "size": signed.size, "root": signed.root}
        path = [bytes.fromhex(one) for one in receipt["path"]]
        leaf = merkle.leaf_hash(shown["canonical"].encode())
        assert leaf.hex() == shown["leaf_hash"]
        assert merkle.includes(leaf=leaf, path=path, **at)
        assert not merkle.includes(leaf=merkle.leaf_hash(b"another"), path=path, **at)
    newest = gateway.get("/v1/audit/checkpoint")
    assert newest.headers["content-type"] == "text/plain; charset=utf-8"
    assert verified(newest.text, [known]).size == size


def test_a_reader_waits_for_the_receipt_and_holds_no_connection(
    gateway: TestClient, database: Database
) -> None:
    with database.run_tx("test") as session:
        caller = add_caller(session, Role.AUDITOR)
        entry_id = note(session, caller.organisation_id)
    found: list[object] = []

    def read() -> None:
        path = f"/v1/audit/entries/{entry_id}?wait=30"
        found.append(gateway.get(path, headers=caller.headers).json()["receipt"])

    readers = [threading.Thread(target=read) for _number in range(8)]  # twice the gateway's connections
    for reader in readers:
        reader.start()
    time.sleep(0.3)
    assert gateway.get("/v1/audit/keys").status_code == 200
    place_all(database)
    for reader in readers:
        reader.join(timeout=40)
    assert len(found) == 8
    assert all(found)


def test_proofs_by_number_hold_and_impossible_ones_are_refused(
    gateway: TestClient, database: Database
) -> None:
    sizes: list[int] = []
    with database.run_tx("test") as session:
        caller = add_caller(session, Role.AUDITOR)
    for _batch in range(2):
        with database.run_tx("test") as session:
            for _number in range(3):
                note(session, caller.organisation_id)
        sizes.append(place_all(database) + sum(sizes))
    first, second = sizes
    with database.run_tx("test") as session:
        roots = {size: session.get_one(AuditCheckpoint, size).root for size in sizes}
    answer = gateway.get(f"/v1/audit/proofs/consistency?first={first}&second={second}").json()
    path = [bytes.fromhex(one) for one in answer["path"]]
    ends = {"first_root": roots[first], "second_root": roots[second]}
    assert merkle.grew(first=first, second=second, path=path, **ends)
    included = gateway.get(f"/v1/audit/proofs/inclusion?index=1&size={second}", headers=caller.headers).json()
    terms = {"index": 1, "size": second, "root": roots[second]}
    path = [bytes.fromhex(one) for one in included["path"]]
    assert merkle.includes(leaf=bytes.fromhex(included["leaf_hash"]), path=path, **terms)
    for kind, query, status in (
        ("consistency", "first=0&second=1", 404),
        ("consistency", f"first=2&second={second + 1}", 404),
        ("consistency", "first=3&second=2", 404),
        ("consistency", f"first=1&second={2**63}", 422),
        ("consistency", "first=-1&second=2", 422),
        ("inclusion", f"index={second}&size={second}", 404),
        ("inclusion", f"index=0&size={second + 1}", 404),
        ("inclusion", "index=0&size=0", 404),
    ):
        answer = gateway.get(f"/v1/audit/proofs/{kind}?{query}", headers=caller.headers)
        assert answer.status_code == status, (kind, query, answer.text)
        assert status != 404 or answer.json()["code"] == "proof_impossible"


def test_after_a_rotation_both_keys_are_published(gateway: TestClient, database: Database) -> None:
    with database.run_tx("test") as session:
        note(session, None)
    place_all(database)
    with database.run_tx("test") as session:
        keys.rotate(session, VAULT, actor="member:1")
    place_all(database)
    new, former = gateway.get("/v1/audit/keys").json()["keys"]
    assert new["signs_until"] is None
    assert former["signs_until"] is not None
    note_text = gateway.get("/v1/audit/checkpoint").text
    for one in (new, former):
        assert verified(note_text, [PublicKey(one["name"], bytes.fromhex(one["public_key"]))]).size == 2
