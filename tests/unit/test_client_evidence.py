"""A server that lies is refused, and what it announced is kept beside what the client held."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.asking import list_assignments
from client.errors import ClientError
from client.evidence import verify
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import fetch, submit, train
from client.serving import Seat, Service
from client.session import Identity, Session
from client.watching import LineWatcher
from tests.client_folders import RandomTrainer, adapter, manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        yield running


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    return profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)


@pytest.fixture
def session(profile: Profile) -> Iterator[Session]:
    with session_of(profile) as running:
        yield running


def session_of(profile: Profile) -> Session:
    identity = Identity(profile.config.client_id, profile.key())
    return Session(profile.config.server, identity=identity, patience_s=5.0)


def fetched(profile: Profile, session: Session) -> RoundFiles:
    return fetch(profile, session, list_assignments(session, wait_s=0)[0])


def send(profile: Profile, session: Session) -> None:
    files = fetched(profile, session)
    train(profile, files, RandomTrainer(), on_step=lambda _done, _steps: None)
    submit(profile, session, files)


def refusal(profile: Profile, session: Session) -> ClientError:
    with pytest.raises(ClientError) as refused:
        send(profile, session)
    return refused.value


def files_of(profile: Profile) -> list[Path]:
    return sorted(profile.ledger.folder.glob("evidence-*.json"))


def the_evidence(profile: Profile, error: ClientError, *, code: str) -> dict[str, Any]:
    """The one file: its owner's alone, whole, signed by the client's key, and named in the refusal."""
    (path,) = files_of(profile)
    assert (error.code, error.evidence) == (code, str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(path.read_text())
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(kept["public_key"]))
    public.verify(base64.b64decode(kept["signature"]), bytes.fromhex(kept["sha256"]))
    body = verify(path)
    assert body["code"] == code
    return body


def test_a_changed_manifest_is_kept_beside_the_one_that_was_accepted(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    first = server.run.manifest_sha256
    send(profile, session)
    server.run.manifest = manifest(privacy={"noise_multiplier": 1.9})
    server.run.open_again(number=2)
    body = the_evidence(profile, refusal(profile, session), code="manifest_changed")
    assert body["announced"]["manifest_sha256"] == server.run.manifest_sha256
    assert body["announced"]["privacy"]["noise_multiplier"] == 1.9
    assert body["held"]["run"]["manifest_sha256"] == first != server.run.manifest_sha256
    assert (body["held"]["ledger_entries"], body["held"]["ledger_head"]) == profile.ledger.head()
    assert len(server.bodies()) == 1


def test_a_manifest_changed_into_one_that_the_policy_refuses_is_still_a_changed_manifest(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    send(profile, session)
    server.run.manifest = manifest(privacy={"trust": "none"})
    server.run.open_again(number=2)
    the_evidence(profile, refusal(profile, session), code="manifest_changed")


def test_a_manifest_other_than_the_announced_is_kept(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.announced_sha256 = "0" * 64
    body = the_evidence(profile, refusal(profile, session), code="manifest_mismatch")
    assert body["announced"]["assignment"]["manifest_sha256"] == "0" * 64


def test_a_replayed_round_is_kept_with_both_adapters(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    send(profile, session)
    server.run.open_again(adapter=adapter() + b" ")
    body = the_evidence(profile, refusal(profile, session), code="round_replayed")
    announced, held = body["announced"]["assignment"], body["held"]["round"]
    assert announced["adapter_sha256"] != held["adapter_sha256"]
    assert announced["round_id"] != held["round_id"]
    assert held["stage"] == "sent"
    assert held["receipt"]["sha256"]
    assert len(server.bodies()) == 1


def test_a_second_client_on_one_data_set_in_one_run_is_kept(
    server: RecordingServer, profile: Profile, session: Session, tmp_path: Path
) -> None:
    send(profile, session)
    second = profile_in(tmp_path / "second", server=server.url, client_id=str(uuid4()))
    server.run.open_again()
    with session_of(second) as other:
        body = the_evidence(second, refusal(second, other), code="run_taken")
    assert body["client_id"] != body["held"]["run"]["client_id"] == profile.config.client_id
    assert len(server.bodies()) == 1


def test_a_price_under_the_clients_own_is_kept_with_both_numbers(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.manifest = manifest(privacy={"epsilon": 0.5})
    body = the_evidence(profile, refusal(profile, session), code="noise_too_small")
    assert body["told"]["claimed"] == "0.5"
    assert float(body["told"]["computed"]) > 0.5
    assert profile.ledger.book().commitments == {}


@pytest.mark.parametrize(
    "after",
    [{"entries": 3}, {"id": str(uuid4()), "entries": 9}],
    ids=["entries are lost", "another account"],
)
def test_a_ledger_that_began_anew_is_kept_and_the_server_gets_nothing_more(
    server: RecordingServer, profile: Profile, session: Session, after: dict[str, Any]
) -> None:
    server.run.account = {"id": str(uuid4()), "entries": 4, "unit": "example"}
    send(profile, session)
    server.run.account |= after
    server.run.open_again(number=2)
    body = the_evidence(profile, refusal(profile, session), code="ledger_reset")
    assert body["announced"]["receipt"]["account"]["entries"] == server.run.account["entries"]
    known = profile.ledger.book().contribution(server.run.run_id, 2)
    assert known is not None
    assert known.stage == "sent"  # its cost stays, whatever the server forgot
    server.run.run_id = str(uuid4())
    server.run.open_again(number=1)
    assert refusal(profile, session).code == "server_distrusted"
    files_of(profile)[0].rename(profile.ledger.folder / "explained.json")
    assert refusal(profile, session).code == "over_ceiling"  # its own ledger forgot nothing


def test_an_account_that_grows_is_believed(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.account = {"id": str(uuid4()), "entries": 4, "unit": "example"}
    send(profile, session)
    server.run.account |= {"entries": 5}
    server.run.open_again(number=2)
    send(profile, session)
    assert files_of(profile) == []


def test_another_adapter_and_a_receipt_for_other_bytes_are_kept(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    def forged(heard: Heard) -> Answer | None:
        answer = server.answer(heard) if heard.method == "PUT" else None
        return answer and Answer(201, answer.payload | {"sha256": "0" * 64})

    server.script = forged
    body = the_evidence(profile, refusal(profile, session), code="receipt_mismatch")
    assert body["announced"]["receipt"]["sha256"] == "0" * 64
    server.script = lambda heard: Answer(content=b"other") if heard.path.endswith("/adapter") else None
    server.run.open_again(number=2)
    assert refusal(profile, session).code == "adapter_mismatch"
    assert len(files_of(profile)) == 2


def test_the_same_lie_told_again_is_kept_once(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.number = 3
    first = refusal(profile, session)
    assert refusal(profile, session).evidence == first.evidence
    the_evidence(profile, first, code="round_not_priced")


def test_a_refusal_that_is_no_lie_keeps_nothing(server: RecordingServer, tmp_path: Path) -> None:
    strict = profile_in(tmp_path / "strict", server=server.url, client_id=server.client_id, epsilon=0.1)
    with session_of(strict) as session:
        assert refusal(strict, session).code == "over_ceiling"
    assert files_of(strict) == []


def test_evidence_that_was_changed_does_not_hold(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.number = 3
    refusal(profile, session)
    (path,) = files_of(profile)
    path.write_text(path.read_text().replace('"number": 3', '"number": 2'))
    with pytest.raises(ClientError) as refused:
        verify(path)
    assert refused.value.code == "evidence_changed"


def test_evidence_holds_no_update_and_nothing_of_the_data(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    send(profile, session)
    server.run.open_again(adapter=adapter() + b" ")
    refusal(profile, session)
    (path,) = files_of(profile)
    text = path.read_text()
    assert not any(word in text for word in ("cheap offer", "kernel list", profile.config.data_sha256))
    assert len(text) < 10_000


def test_the_terminal_names_the_evidence(server: RecordingServer, profile: Profile, tmp_path: Path) -> None:
    server.run.number = 3
    seat = Seat(profile, session_of(profile))
    with (tmp_path / "log").open("w", encoding="utf-8") as out, pytest.raises(ClientError):
        Service([seat], trainer=RandomTrainer(), watcher=LineWatcher(out), once=True).run()
    seat.session.close()
    assert str(files_of(profile)[0]) in (tmp_path / "log").read_text(encoding="utf-8")
