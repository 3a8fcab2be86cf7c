"""A client follows the server's audit log: it may grow, and never be another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.audit import merkle
from app.audit.checkpoint import Checkpoint, PublicKey, sign
from client.asking import list_assignments
from client.errors import ClientError
from client.evidence import verify
from client.profile import Profile
from client.rounds import fetch
from client.session import Identity, Session
from client.transparency import Head, grew
from tests.client_folders import adapter, manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, problem

ORIGIN = "lab.example.org/audit"
LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(32)]


class PlayedLog:
    """A log that a server shows; whatever a server could do to it can be done here."""

    def __init__(self) -> None:
        self.leaves = LEAVES[:5]
        self.keys = [Ed25519PrivateKey.generate()]
        self.published = list(self.keys)
        self.origin = ORIGIN
        self.gone = False

    def answer(self, heard: Heard) -> Answer | None:
        path, _mark, query = heard.path.partition("?")
        if not path.startswith("/v1/audit/") or self.gone:
            return None
        if path == "/v1/audit/checkpoint":
            return Answer(content=self.note().encode())
        if path == "/v1/audit/keys":
            return Answer(payload={"keys": [self.shown(key) for key in self.published]})
        first, second = (int(part.partition("=")[2]) for part in query.split("&"))
        if not 0 < first <= second <= len(self.leaves):
            return problem(404, "proof_impossible")
        _range, nodes = self.tree()
        proof = merkle.proof(merkle.consistency_spans(first, second), nodes.__getitem__)
        return Answer(payload={"first": first, "second": second, "path": [one.hex() for one in proof]})

    def note(self) -> str:
        checkpoint = Checkpoint(self.origin, len(self.leaves), merkle.root_of(self.leaves))
        return sign(checkpoint, [(self.origin, key) for key in self.keys])

    def shown(self, key: Ed25519PrivateKey) -> dict[str, object]:
        public = PublicKey(self.origin, key.public_key().public_bytes_raw())
        return {"name": public.name, "public_key": public.raw.hex(), "verifier_key": public.text}

    def tree(self) -> tuple[merkle.CompactRange, dict[merkle.Node, bytes]]:
        range_, nodes = merkle.CompactRange(), {(0, at): leaf for at, leaf in enumerate(self.leaves)}
        for leaf in self.leaves:
            nodes.update(range_.append(leaf))
        return range_, nodes


@pytest.fixture
def log() -> PlayedLog:
    return PlayedLog()


@pytest.fixture
def server(log: PlayedLog) -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        running.script = log.answer
        yield running


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    return profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)


@pytest.fixture
def session(profile: Profile) -> Iterator[Session]:
    identity = Identity(profile.config.client_id, profile.key())
    with Session(profile.config.server, identity=identity, patience_s=2.0) as running:
        yield running


def bring(profile: Profile, session: Session) -> None:
    fetch(profile, session, list_assignments(session, wait_s=0)[0])


def refused(profile: Profile, session: Session) -> ClientError:
    with pytest.raises(ClientError) as caught:
        bring(profile, session)
    assert caught.value.code == "log_rewritten"
    return caught.value


def remembered(profile: Profile) -> str:
    held: str = json.loads((profile.folder / "audit-log.json").read_text("utf-8"))["checkpoint"]
    return held


def test_a_log_that_grows_is_followed(log: PlayedLog, profile: Profile, session: Session) -> None:
    for size in (5, 5, 6, 8, 9, 31):
        log.leaves = LEAVES[:size]
        bring(profile, session)
        assert remembered(profile) == log.note()


def test_a_server_without_a_log_is_served_until_it_had_one(
    log: PlayedLog, profile: Profile, session: Session
) -> None:
    log.gone = True
    bring(profile, session)
    log.gone = False
    bring(profile, session)
    log.gone = True
    refused(profile, session)


def test_a_log_that_was_rewritten_is_refused_and_both_are_kept_as_evidence(
    log: PlayedLog, profile: Profile, session: Session
) -> None:
    bring(profile, session)
    before = log.note()
    log.leaves = [*LEAVES[:2], merkle.leaf_hash(b"another"), *LEAVES[3:9]]
    error = refused(profile, session)
    assert error.evidence is not None
    seen = verify(Path(error.evidence))["announced"]
    assert (seen["log_before"], seen["log_now"]) == (before, log.note())
    assert remembered(profile) == before
    refused(profile, session)


@pytest.mark.parametrize("size", [5, 4, 1])
def test_a_log_that_shrank_or_differs_at_the_same_size_is_refused(
    log: PlayedLog, profile: Profile, session: Session, size: int
) -> None:
    bring(profile, session)
    log.leaves = [merkle.leaf_hash(b"another"), *LEAVES[1:size]]
    refused(profile, session)


def test_another_key_or_another_origin_is_refused(log: PlayedLog, profile: Profile, session: Session) -> None:
    bring(profile, session)
    former = log.keys
    log.keys = log.published = [Ed25519PrivateKey.generate()]
    refused(profile, session)
    log.keys, log.origin = former, "another/audit"
    refused(profile, session)


def test_a_new_key_is_taken_while_the_former_one_signs_beside_it(
    log: PlayedLog, profile: Profile, session: Session
) -> None:
    bring(profile, session)
    new = Ed25519PrivateKey.generate()
    log.keys.insert(0, new)
    log.published = log.keys[:]
    bring(profile, session)
    log.keys, log.leaves = [new], LEAVES[:9]
    bring(profile, session)
    assert remembered(profile) == log.note()


@pytest.mark.parametrize(
    "note",
    ["", "nonsense", "a\n1\nx\n\n— a b\n", f"{ORIGIN}\n05\nAAAA\n\n— {ORIGIN} AAAA\n", "a\n\n\n\n", "\udcff"],
)
def test_what_is_no_checkpoint_is_refused(
    log: PlayedLog, server: RecordingServer, profile: Profile, session: Session, note: str
) -> None:
    bring(profile, session)
    raw = note.encode("utf-8", "surrogateescape")
    server.script = lambda heard: Answer(content=raw) if heard.path.endswith("checkpoint") else None
    refused(profile, session)


def test_a_proof_that_is_missing_or_wrong_is_refused(
    log: PlayedLog, server: RecordingServer, profile: Profile, session: Session
) -> None:
    bring(profile, session)
    log.leaves = LEAVES[:9]
    right = log.answer
    for path in ([], ["0" * 64], ["0" * 64] * 4):
        wrong = Answer(payload={"first": 5, "second": 9, "path": path})
        server.script = lambda heard, wrong=wrong: wrong if "proofs" in heard.path else right(heard)  # type: ignore[misc]
        refused(profile, session)
    server.script = right
    bring(profile, session)


def test_what_the_client_wrote_and_cannot_read_is_not_forgotten(
    log: PlayedLog, profile: Profile, session: Session
) -> None:
    bring(profile, session)
    (profile.folder / "audit-log.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ClientError, match="cannot be read"):
        bring(profile, session)


def test_the_clients_verification_agrees_with_the_servers() -> None:
    roots = [merkle.root_of(LEAVES[:size]) for size in range(len(LEAVES) + 1)]
    nodes: dict[merkle.Node, bytes] = {(0, at): leaf for at, leaf in enumerate(LEAVES)}
    range_ = merkle.CompactRange()
    for leaf in LEAVES:
        nodes.update(range_.append(leaf))
    for second in range(1, len(LEAVES) + 1):
        for first in range(1, second + 1):
            path = merkle.proof(merkle.consistency_spans(first, second), nodes.__getitem__)
            one, two = Head(ORIGIN, first, roots[first]), Head(ORIGIN, second, roots[second])
            assert grew(first=one, second=two, path=path)
            assert not grew(first=one, second=two, path=[*path, LEAVES[0]])
            other = Head(ORIGIN, second, merkle.leaf_hash(b"another"))
            assert not grew(first=one, second=other, path=path)
            if path:
                assert not grew(first=one, second=two, path=path[1:])
