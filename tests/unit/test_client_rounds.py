"""Fetch, train and submit: what they refuse, and that one data set sends one update a round."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from client.asking import list_assignments
from client.book import Stage
from client.declaring import code_sha256
from client.errors import ClientError
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import RoundMissed, fetch, submit, train
from client.serving import Seat, Service
from client.session import Identity, Session
from client.watching import LineWatcher
from client.wire import canonical_sha256
from tests.client_folders import RandomTrainer, adapter, manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, problem

PERSON = {"id_field": "author", "records_cap": 8, "silos": 1}


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        yield running


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    return profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)


@pytest.fixture
def session(profile: Profile) -> Iterator[Session]:
    running = session_of(profile)
    yield running
    running.close()


def session_of(profile: Profile, *, patience_s: float = 5.0) -> Session:
    identity = Identity(profile.config.client_id, profile.key())
    return Session(profile.config.server, identity=identity, patience_s=patience_s)


def fetched(profile: Profile, session: Session) -> RoundFiles:
    return fetch(profile, session, list_assignments(session, wait_s=0)[0])


def trained(profile: Profile, files: RoundFiles) -> Any:
    return train(profile, files, RandomTrainer(), on_step=lambda _done, _steps: None)


def refused(code: str) -> Any:
    class Refused:
        def __enter__(self) -> None:
            return None

        def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
            assert isinstance(error, ClientError), "nothing was refused"
            assert error.code == code
            return True

    return Refused()


def test_a_round_is_fetched_trained_and_sent_once(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files = fetched(profile, session)
    trained(profile, files)
    receipt = submit(profile, session, files)
    assert server.bodies() == [files.update_path.read_bytes()]
    known = profile.ledger.book().contribution(server.run.run_id, 1)
    assert (known.stage, known.update_id) == (Stage.SENT, str(receipt.update_id))


@pytest.mark.parametrize(
    ("changed", "terms", "code"),
    [
        ({"privacy": {"trust": "none"}}, {}, "trust_refused"),
        ({"privacy": {"trust": "central", "unit": "client"}}, {}, "trust_refused"),
        ({"privacy": {"trust": "distributed"}}, {"trusts": ["local", "distributed"]}, "trust_refused"),
        ({"privacy": {"trust": "central"}}, {"trusts": ["local", "central"]}, "plan_unsupported"),
        ({"privacy": {"relation": "add_remove"}}, {}, "relation_refused"),
        ({"privacy": {"unit": "client"}}, {}, "plan_unsupported"),
        ({"privacy": {"unit": "person"}}, {}, "plan_unsupported"),
        ({"privacy": {"person": PERSON}}, {}, "plan_unsupported"),
        ({}, {"units": ["person", "client"]}, "unit_refused"),
        ({"privacy": {"noise_multiplier": None}}, {}, "plan_incomplete"),
        ({"privacy": {"noise_multiplier": 0.4}}, {}, "noise_too_small"),
        ({"privacy": {"noise_multiplier": 0.0011}}, {}, "cannot_price"),
        ({"quorum": {"min_updates": 1}}, {}, "cohort_too_small"),
        ({"training": {"optimizer": "adam"}}, {}, "unsupported_plan"),
        ({"privacy": {"clip_norm": 1e300}}, {}, "unsupported_plan"),
        ({}, {"base_models": ["1" * 64]}, "base_model_refused"),
        ({"task": {"labels": ["ham", "diagnosis"]}}, {}, "labels_refused"),
        ({"task": {"labels": ["ham", "spam", "advert"]}}, {}, "labels_refused"),
        ({"task": {"labels": ["ham", "ham"]}}, {}, "labels_refused"),
        ({"task": {"text_fields": ["subject", "cc"]}}, {}, "fields_refused"),
        ({"task": {"label_field": "kind"}}, {}, "fields_refused"),
        ({"privacy": {"unit": "person", "person": PERSON}}, {}, "persons_refused"),
        (
            {"privacy": {"unit": "person", "person": PERSON}},
            {"person_field": "author", "person_records": 9},
            "persons_refused",
        ),
        (
            {"privacy": {"unit": "person", "person": PERSON}},
            {"person_field": "author", "person_records": 8},
            "relation_refused",
        ),
        ({"training": {"learning_rate": 1e-300}}, {}, "unsupported_plan"),
        ({"training": {"learning_rate": 1e5}}, {}, "unsupported_plan"),
        ({"privacy": {"divisor": 1e-300}}, {}, "unsupported_plan"),
        ({"privacy": {"divisor": 1e10}}, {}, "unsupported_plan"),
        (
            {"tensors": [{"name": "base_model.model.classifier.weight", "shape": [3, 8], "trained": True}]},
            {},
            "unsupported_plan",
        ),
        ({}, {"epsilon": 0.1}, "over_ceiling"),
        ({}, {"delta": 1e-6}, "over_ceiling"),
        ({"surprise": 1}, {}, "manifest_invalid"),
        ({"rounds": "2"}, {}, "manifest_invalid"),
    ],
)
def test_a_run_that_the_policy_does_not_allow_is_refused_before_anything_is_downloaded(
    server: RecordingServer, tmp_path: Path, changed: dict[str, Any], terms: dict[str, Any], code: str
) -> None:
    profile = profile_in(tmp_path / "strict", server=server.url, client_id=server.client_id, **terms)
    server.run.manifest = manifest(**changed)
    session = session_of(profile)
    assignment = list_assignments(session, wait_s=0)[0].model_copy(update={"rounds": 2})
    with refused(code):
        fetch(profile, session, assignment)
    session.close()
    assert not [heard for heard in server.heard if heard.path.endswith("/adapter")]
    assert profile.ledger.book().commitments == {}


def test_a_manifest_other_than_the_announced_is_refused(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.announced_sha256 = "0" * 64
    with refused("manifest_mismatch"):
        fetched(profile, session)


def test_a_manifest_that_changes_between_rounds_is_refused(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files = fetched(profile, session)
    trained(profile, files)
    submit(profile, session, files)
    server.run.manifest = manifest(training={"learning_rate": 0.1})
    server.run.open_again(number=2)
    with refused("manifest_changed"):
        fetched(profile, session)
    assert len(server.bodies()) == 1


def test_a_ledger_that_was_lost_is_not_begun_anew(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    (profile.ledger.folder / "ledger.jsonl").unlink()
    with refused("ledger_lost"):
        fetched(profile, session)
    assert profile.ledger.book().commitments == {}


def test_names_in_a_manifest_cannot_write_to_the_terminal(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.manifest = manifest(privacy={"trust": "\x1b]0;owned\x07"})
    with pytest.raises(ClientError) as told:
        fetched(profile, session)
    assert "owned" in str(told.value)
    assert str(told.value).isprintable()


def test_an_adapter_other_than_the_announced_is_refused(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.script = lambda heard: Answer(content=b"other") if heard.path.endswith("/adapter") else None
    with refused("adapter_mismatch"):
        fetched(profile, session)


@pytest.mark.parametrize("number", [3, 1000])
def test_a_round_outside_the_priced_schedule_is_refused(
    server: RecordingServer, profile: Profile, session: Session, number: int
) -> None:
    server.run.number = number
    with refused("round_not_priced"):
        fetched(profile, session)


def test_a_round_played_again_gets_the_same_bytes(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files = fetched(profile, session)
    trained(profile, files)
    submit(profile, session, files)
    server.run.open_again()
    again = fetched(profile, session)
    trained(profile, again)
    submit(profile, session, again)
    assert len(server.bodies()) == 2
    assert len(set(server.bodies())) == 1


def test_a_round_played_again_from_another_adapter_gets_nothing(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files = fetched(profile, session)
    trained(profile, files)
    submit(profile, session, files)
    server.run.open_again(adapter=adapter() + b" ")
    again = fetched(profile, session)
    trained(profile, again)
    with refused("round_replayed"):
        submit(profile, session, again)
    assert len(server.bodies()) == 1


def test_an_update_lost_after_spending_is_never_trained_again(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files = fetched(profile, session)
    prepared = trained(profile, files)
    profile.ledger.spend(server.run.run_id, 1, sha256=prepared.sha256)
    files.update_path.unlink()
    trained(profile, files)
    assert not files.update_path.exists()
    with refused("update_lost"):
        submit(profile, session, files)
    assert server.bodies() == []


def test_an_unsent_update_that_was_damaged_is_trained_again(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files = fetched(profile, session)
    first = trained(profile, files)
    files.update_path.chmod(0o600)
    files.update_path.write_bytes(b"damaged")
    with refused("update_changed"):
        submit(profile, session, files)
    assert trained(profile, files).sha256 != first.sha256
    submit(profile, session, files)
    assert len(server.bodies()) == 1


def test_an_update_that_fails_its_check_is_not_trained_again(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    class Failing(RandomTrainer):
        def train(self, *_: Any, **__: Any) -> Any:
            raise ClientError("update_unusable", "not sent: {rule}", rule="finite")

    files = fetched(profile, session)
    with pytest.raises(RoundMissed, match="finite"):
        train(profile, files, Failing(), on_step=lambda _done, _steps: None)
    again = RandomTrainer()
    train(profile, files, again, on_step=lambda _done, _steps: None)
    assert again.trained == 0
    with refused("update_lost"):
        submit(profile, session, files)
    assert server.bodies() == []


def test_a_finished_update_is_declared_in_its_folder_and_beside_the_update_alone(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files = fetched(profile, session)
    update = trained(profile, files)
    submit(profile, session, files)
    kept = json.loads((files.folder / "declaration.json").read_text())
    said = kept["declaration"]
    assert (said["attestation"], said["unit"], said["noise_multiplier"], said["clip_norm"]) == (
        "declared",
        "example",
        2.0,
        1.0,
    )
    assert (said["update_sha256"], said["code_sha256"]) == (update.sha256, code_sha256())
    assert canonical_sha256(said) == kept["sha256"]
    signature = base64.b64decode(kept["signature"])
    profile.key().public_key().verify(signature, bytes.fromhex(kept["sha256"]))
    assert not [heard for heard in server.heard if b"declared" in heard.body]
    (told,) = [
        heard.headers["DPFL-Declaration"] for heard in server.heard if "DPFL-Declaration" in heard.headers
    ]
    sent = json.loads(base64.urlsafe_b64decode(told))
    assert sent == {"declaration": said, "signature": kept["signature"]}
    assert files.declaration(key=bytes(32)) is None  # of another machine that has another key


def test_nothing_is_sent_before_training(profile: Profile, session: Session) -> None:
    with refused("update_not_prepared"):
        submit(profile, session, fetched(profile, session))


def test_the_same_bytes_are_sent_again_after_any_doubtful_answer(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    answers = iter([problem(503, "unavailable", headers={"Retry-After": "0"}), problem(507, "storage_full")])
    server.script = lambda heard: next(answers, None) if heard.method == "PUT" else None
    files = fetched(profile, session)
    trained(profile, files)
    submit(profile, session, files)
    assert len(server.bodies()) == 3
    assert len(set(server.bodies())) == 1


def test_a_receipt_for_other_bytes_is_not_believed(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    def forged(heard: Heard) -> Answer | None:
        answer = server.answer(heard) if heard.method == "PUT" else None
        return answer and Answer(201, answer.payload | {"sha256": "0" * 64})

    server.script = forged
    files = fetched(profile, session)
    trained(profile, files)
    with refused("receipt_mismatch"):
        submit(profile, session, files)
    assert profile.ledger.book().contribution(server.run.run_id, 1).stage is Stage.SPENT


def test_a_closed_round_is_missed_and_stays_spent(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.script = lambda heard: problem(409, "round_not_open") if heard.method == "PUT" else None
    files = fetched(profile, session)
    trained(profile, files)
    with pytest.raises(RoundMissed):
        submit(profile, session, files)
    assert profile.ledger.book().contribution(server.run.run_id, 1).stage is Stage.SPENT


def test_a_second_process_on_one_profile_is_refused(profile: Profile) -> None:
    with profile.locked(), refused("profile_busy"), profile.locked():
        raise AssertionError("both hold it")


def test_another_data_file_is_not_trained_on(profile: Profile) -> None:
    Path(profile.config.data).write_text("{}\n", encoding="utf-8")
    with refused("data_changed"):
        profile.require_data()


def test_serving_ends_with_the_run_and_tells_rounds_and_epsilon_only(
    server: RecordingServer, profile: Profile, tmp_path: Path
) -> None:
    def next_round(heard: Heard) -> Answer | None:
        if heard.method != "PUT":
            return None
        answer = server.answer(heard)
        if server.run.number == 2:
            server.run.state = "finished"
        else:
            server.run.open_again(number=2)
        return answer

    server.script = next_round
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as out:
        seat = Seat(profile, session_of(profile))
        service = Service(
            [seat], trainer=RandomTrainer(), watcher=LineWatcher(out), save_updates=tmp_path / "kept"
        )
        service.run()
        seat.session.close()
    first, second = log.read_text(encoding="utf-8").splitlines()
    assert first.startswith("mailbox-3: round 1 of 2 sent, epsilon ")
    assert second.startswith("mailbox-3: round 2 of 2 sent, epsilon ")
    kept = [
        (tmp_path / "kept" / "mailbox-3" / f"round-{number}.safetensors").read_bytes() for number in (1, 2)
    ]
    assert kept == server.bodies()


def test_one_profiles_refusal_does_not_stop_the_others(
    server: RecordingServer, profile: Profile, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    strict = profile_in(other / "profile", server=server.url, client_id=str(uuid4()), epsilon=0.01)
    log = tmp_path / "log"
    seats = [Seat(strict, session_of(strict)), Seat(profile, session_of(profile))]
    with log.open("w", encoding="utf-8") as out, refused("over_ceiling"):
        Service(seats, trainer=RandomTrainer(), watcher=LineWatcher(out), once=True).run()
    for seat in seats:
        seat.session.close()
    assert len(server.bodies()) == 1
