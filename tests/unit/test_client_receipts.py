"""A client finds its update in the server's log before it goes on to the next round."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.audit import merkle
from client.asking import list_assignments
from client.errors import ClientError
from client.evidence import verify
from client.profile import Profile
from client.receipts import includes
from client.rounds import fetch, submit, train
from client.session import Identity, Session
from client.transparency import Head
from tests.client_folders import RandomTrainer, adapter, manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, canonical, problem
from tests.unit.test_client_transparency import LEAVES, ORIGIN, PlayedLog


class LoggingServer(PlayedLog):
    """A log into which each update goes, three entries behind the ones that are there."""

    def __init__(self, server: RecordingServer) -> None:
        super().__init__()
        self.server = server
        self.entry: dict[str, Any] = {}
        self.entry_id = str(uuid4())
        self.placed = True
        self.received_at: str | None = None
        self.change: Callable[[dict[str, Any]], None] = lambda _answer: None

    def answer(self, heard: Heard) -> Answer | None:
        if heard.method == "PUT":
            return self._taken(self.server.answer(heard))
        if heard.path != f"/v1/audit/entries/{self.entry_id}":
            return super().answer(heard)
        shown = self._shown()
        self.change(shown)
        return Answer(payload=shown)

    def _taken(self, answer: Answer) -> Answer:
        self.entry = {
            "action": "update.accepted",
            "subject": f"update:{answer.payload['update_id']}",
            "details": {"sha256": answer.payload["sha256"]},
        }
        if self.placed:
            self.place()
        told = {} if self.received_at is None else {"received_at": self.received_at}
        return Answer(201, answer.payload | {"audit_entry_id": self.entry_id} | told)

    def place(self) -> None:
        self.placed = True
        self.leaves = [*self.leaves, LEAVES[9], merkle.leaf_hash(canonical(self.entry)), LEAVES[10]]

    def _shown(self) -> dict[str, Any]:
        shown = {"canonical": canonical(self.entry).decode(), "receipt": None}
        if self.placed:
            index, size = len(self.leaves) - 2, len(self.leaves)
            _range, nodes = self.tree()
            path = merkle.proof(merkle.inclusion_spans(index, size), nodes.__getitem__)
            shown["receipt"] = {
                "leaf_index": index,
                "path": [one.hex() for one in path],
                "checkpoint": self.note(),
            }
        return shown


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        yield running


@pytest.fixture
def log(server: RecordingServer) -> LoggingServer:
    played = LoggingServer(server)
    server.script = played.answer
    return played


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    return profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)


@pytest.fixture
def session(profile: Profile) -> Iterator[Session]:
    identity = Identity(profile.config.client_id, profile.key())
    with Session(profile.config.server, identity=identity, patience_s=2.0) as running:
        yield running


def first_round(profile: Profile, session: Session, server: RecordingServer) -> None:
    files = fetch(profile, session, list_assignments(session, wait_s=0)[0])
    train(profile, files, RandomTrainer(), on_step=lambda _done, _steps: None)
    submit(profile, session, files)
    server.run.open_again(number=2)


def second_round(profile: Profile, session: Session) -> None:
    fetch(profile, session, list_assignments(session, wait_s=0)[0])


def checked(profile: Profile) -> str | None:
    found: str | None = json.loads((profile.folder / "audit-log.json").read_text("utf-8"))["checked"]
    return found


def asked(server: RecordingServer) -> int:
    return sum(heard.path.startswith("/v1/audit/entries/") for heard in server.heard)


def test_an_update_is_found_in_the_log_once(
    log: LoggingServer, server: RecordingServer, profile: Profile, session: Session
) -> None:
    first_round(profile, session, server)
    assert checked(profile) is None
    for _again in range(2):
        second_round(profile, session)
    assert checked(profile) == log.entry_id
    assert asked(server) == 1


def test_an_entry_without_a_place_is_asked_for_again_for_a_day(
    log: LoggingServer, server: RecordingServer, profile: Profile, session: Session
) -> None:
    log.placed = False
    first_round(profile, session, server)
    second_round(profile, session)
    assert checked(profile) is None
    log.place()
    second_round(profile, session)
    assert checked(profile) == log.entry_id


def refused(profile: Profile, session: Session, code: str = "update_not_logged") -> ClientError:
    with pytest.raises(ClientError) as caught:
        second_round(profile, session)
    assert caught.value.code == code
    assert caught.value.evidence is not None
    assert verify(Path(caught.value.evidence))["announced"]["logged_as"]
    assert checked(profile) is None
    return caught.value


def test_an_entry_that_waits_for_longer_than_a_day_is_none(
    log: LoggingServer, server: RecordingServer, profile: Profile, session: Session
) -> None:
    log.placed, log.received_at = False, "2026-01-01T00:00:00Z"
    first_round(profile, session, server)
    refused(profile, session)


def test_an_entry_that_is_not_there_is_refused(
    log: LoggingServer, server: RecordingServer, profile: Profile, session: Session
) -> None:
    first_round(profile, session, server)
    server.script = lambda heard: (
        problem(404, "not_found") if "/entries/" in heard.path else log.answer(heard)
    )
    refused(profile, session)


def other_digest(shown: dict[str, Any]) -> None:
    shown["canonical"] = canonical(
        json.loads(shown["canonical"]) | {"details": {"sha256": "0" * 64}}
    ).decode()


def other_update(shown: dict[str, Any]) -> None:
    shown["canonical"] = canonical(json.loads(shown["canonical"]) | {"subject": f"update:{uuid4()}"}).decode()


def other_act(shown: dict[str, Any]) -> None:
    shown["canonical"] = canonical(json.loads(shown["canonical"]) | {"action": "update.rejected"}).decode()


def other_bytes(shown: dict[str, Any]) -> None:
    shown["canonical"] = shown["canonical"].replace("{", "{ ", 1)


def no_json(shown: dict[str, Any]) -> None:
    shown["canonical"] = "[]"


def other_place(shown: dict[str, Any]) -> None:
    shown["receipt"]["leaf_index"] -= 1


def beyond(shown: dict[str, Any]) -> None:
    shown["receipt"]["leaf_index"] = 10**6


def shorter(shown: dict[str, Any]) -> None:
    shown["receipt"]["path"].pop()


def longer(shown: dict[str, Any]) -> None:
    shown["receipt"]["path"].append("0" * 64)


WRONG = (other_digest, other_update, other_act, other_bytes, no_json, other_place, beyond, shorter, longer)


@pytest.mark.parametrize("change", WRONG)
def test_an_entry_that_is_not_the_update_or_is_not_in_the_log_is_refused(
    log: LoggingServer,
    server: RecordingServer,
    profile: Profile,
    session: Session,
    change: Callable[[dict[str, Any]], None],
) -> None:
    first_round(profile, session, server)
    log.change = change
    refused(profile, session)


def test_a_receipt_of_another_log_is_refused(
    log: LoggingServer, server: RecordingServer, profile: Profile, session: Session
) -> None:
    first_round(profile, session, server)

    def elsewhere(shown: dict[str, Any]) -> None:
        other = PlayedLog()
        other.keys, other.leaves = log.keys, [merkle.leaf_hash(shown["canonical"].encode())]
        shown["receipt"] = {"leaf_index": 0, "path": [], "checkpoint": other.note()}

    log.change = elsewhere
    refused(profile, session, "log_rewritten")

    def strangers(shown: dict[str, Any]) -> None:
        elsewhere(shown)
        other = PlayedLog()
        other.keys = [Ed25519PrivateKey.generate()]
        shown["receipt"]["checkpoint"] = other.note()

    log.change = strangers
    refused(profile, session, "log_rewritten")


def test_the_clients_check_agrees_with_the_servers() -> None:
    nodes: dict[merkle.Node, bytes] = {(0, at): leaf for at, leaf in enumerate(LEAVES)}
    range_ = merkle.CompactRange()
    for leaf in LEAVES:
        nodes.update(range_.append(leaf))
    for size in range(1, len(LEAVES) + 1):
        head = Head(ORIGIN, size, merkle.root_of(LEAVES[:size]))
        for index in range(size):
            path = merkle.proof(merkle.inclusion_spans(index, size), nodes.__getitem__)
            assert includes(leaf=LEAVES[index], index=index, head=head, path=path)
            assert not includes(leaf=LEAVES[index], index=index + 1, head=head, path=path)
            assert not includes(leaf=head.root, index=index, head=head, path=[*path, head.root])
