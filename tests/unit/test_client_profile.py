"""Enrolment, the profile's folder, the policy's file, the disclaimer, and what a person is shown."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.console import Console

from client.accepting import accept
from client.amounts import epsilon_cost
from client.disclaiming import disclaim
from client.durable import write_whole
from client.enrolment import PROOF_PREFIX, Wish, enrol
from client.errors import ClientError
from client.ledger import Commitment, Ledger
from client.policy import Policy
from client.profile import Profile, make_key, policy_path, read_key
from client.session import Identity, Session
from client.standing import status_lines
from client.watching import BarWatcher, Standing, watcher_for
from client.wire import Assignment, FrozenManifest
from tests.client_folders import DECLARED, MAILS, TERMS, adapter, manifest, profile_in
from tests.recording import PlayedRun, RecordingServer, problem


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        yield running


def wish(tmp_path: Path, server: RecordingServer, **changed: Any) -> Wish:
    data = tmp_path / "mails.jsonl"
    data.write_text("".join(json.dumps(mail) + "\n" for mail in MAILS))
    return Wish(
        **{
            "folder": tmp_path / "profile",
            "server": server.url,
            "token": "dpfl_enrol_x",
            "name": "client three",
            "data": data,
            "policy": Policy.of(**(TERMS | changed.pop("terms", {}))),
            "home": tmp_path / "ledgers",
        }
        | changed
    )


def refused_code(act: Any) -> str:
    with pytest.raises(ClientError) as refused:
        act()
    return refused.value.code


def test_enrolment_proves_the_key_and_tells_nothing_of_the_data(
    tmp_path: Path, server: RecordingServer
) -> None:
    profile = enrol(wish(tmp_path, server))
    body = json.loads(server.heard[0].body)
    raw = base64.urlsafe_b64decode(body["public_key"] + "==")
    proof = base64.urlsafe_b64decode(body["proof"] + "==")
    Ed25519PublicKey.from_public_bytes(raw).verify(proof, PROOF_PREFIX + b"dpfl_enrol_x\0" + raw)
    assert set(body) == {"enrolment_token", "name", "public_key", "proof", "population", "capability"}
    assert set(body["capability"]) == {"memory_bytes", "cpu_count", "software"}
    enrol(wish(tmp_path, server, folder=tmp_path / "told", memory_bytes=10**9, upload_bytes_per_s=5e5))
    told = json.loads(server.heard[-1].body)["capability"]
    assert (told["memory_bytes"], told["upload_bytes_per_s"]) == (10**9, 5e5)
    again = Profile.open(profile.folder)
    assert (again.config.client_id, again.config.region) == (server.client_id, "eu-west-1")


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path, server: RecordingServer) -> None:
    profile = enrol(wish(tmp_path, server))
    assert profile.folder.stat().st_mode & 0o777 == 0o700
    for name in ("key.pem", "config.json"):
        assert (profile.folder / name).stat().st_mode & 0o777 == 0o600
    (profile.folder / "key.pem").chmod(0o640)
    assert refused_code(profile.key) == "key_exposed"


def test_what_a_crash_left_of_a_file_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"of somebody else")
    (tmp_path / ".update.json.new").symlink_to(other)
    write_whole(tmp_path / "update.json", b"whole")
    (tmp_path / ".update.json.new").write_bytes(b"half")
    (tmp_path / ".update.json.new").chmod(0o400)
    write_whole(tmp_path / "update.json", b"whole again", mode=0o400)
    assert other.read_bytes() == b"of somebody else"
    assert (tmp_path / "update.json").read_bytes() == b"whole again"


def test_a_refused_enrolment_can_be_repeated_with_the_same_key(
    tmp_path: Path, server: RecordingServer
) -> None:
    server.script = lambda _heard: problem(409, "enrolment_used")
    assert refused_code(lambda: enrol(wish(tmp_path, server))) == "enrolment_used"
    key = make_key(tmp_path / "profile")
    server.script = lambda _heard: None
    profile = enrol(wish(tmp_path, server))
    assert profile.key().private_bytes_raw() == key.private_bytes_raw()
    assert refused_code(lambda: enrol(wish(tmp_path, server))) == "already_enrolled"


def test_one_data_set_has_one_set_of_terms_and_one_name(tmp_path: Path, server: RecordingServer) -> None:
    enrol(wish(tmp_path, server))
    more = wish(tmp_path, server, folder=tmp_path / "second", terms={"epsilon": 80.0})
    assert refused_code(lambda: enrol(more)) == "policy_exists"
    renamed = wish(tmp_path, server, folder=tmp_path / "third", terms={"dataset": "fresh"})
    assert refused_code(lambda: enrol(renamed)) == "data_known"
    assert enrol(wish(tmp_path, server, folder=tmp_path / "fourth")).ledger.folder.exists()


def test_a_missing_data_file_is_told_before_anything_is_sent(tmp_path: Path, server: RecordingServer) -> None:
    absent = wish(tmp_path, server, data=tmp_path / "absent.jsonl")
    assert refused_code(lambda: enrol(absent)) == "cannot_read"
    assert server.heard == []


def test_a_folder_without_a_client_is_told(tmp_path: Path) -> None:
    assert refused_code(lambda: Profile.open(tmp_path)) == "no_profile"
    assert refused_code(lambda: read_key(tmp_path)) == "no_key"
    (tmp_path / "key.pem").write_text("nonsense")
    (tmp_path / "key.pem").chmod(0o600)
    assert refused_code(lambda: read_key(tmp_path)) == "no_key"


SOUND = """dataset = 'x'
epsilon = 8
delta = 1e-5
epsilon_per_year = 4.0
text_fields = ['body']
label_field = 'label'
labels = ['a', 'b']
"""


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("delta = 1e-5\n", "", "delta"),
        ("label_field", "espilon = 1\nlabel_field", "espilon"),
        ("epsilon = 8", "epsilon = -1", "epsilon"),
        ("epsilon = 8", "epsilon = true", "epsilon"),
        ("epsilon = 8", "epsilon = nan", "epsilon"),
        ("epsilon = 8", "epsilon = inf", "epsilon"),
        ("delta = 1e-5", "delta = nan", "delta"),
        ("delta = 1e-5", "delta = inf", "delta"),
        ("epsilon_per_year = 4.0", "epsilon_per_year = nan", "epsilon_per_year"),
        ("epsilon_per_year = 4.0", "epsilon_per_year = inf", "epsilon_per_year"),
    ],
)
def test_a_policy_that_is_not_whole_allows_nothing(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(SOUND)
    assert Policy.load(path).delta == 1e-5
    path.write_text(SOUND.replace(old, new, 1))
    with pytest.raises(ClientError) as refused:
        Policy.load(path)
    assert (refused.value.code, refused.value.members["field"]) == ("policy_invalid", named)


def test_a_policy_that_is_no_toml_is_told(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("epsilon = [")
    assert refused_code(lambda: Policy.load(path)) == "policy_unreadable"


def test_a_policy_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    written = Policy.of(
        dataset='a "quoted" \\ name\n',
        epsilon=3.5,
        delta=1e-7,
        epsilon_per_year=1.25,
        trusts=["local", "none"],
        **DECLARED | {"labels": ['"a"', "b"]},
        person_field="author",
        person_records=7,
        base_models=["ab" * 32],
        base_model_folders={"a b": "/some/folder"},
    )
    written.save(path)
    assert Policy.load(path) == written


def test_a_policy_edited_between_rounds_binds_the_next_one(tmp_path: Path, server: RecordingServer) -> None:
    profile = profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)
    path = policy_path(Path(profile.config.home), "mailbox-3")
    Policy.of(**TERMS, smallest_cohort=5).save(path)
    run = server.run
    frozen, assignment = FrozenManifest(run.manifest_bytes), Assignment.model_validate(run.assignment())
    assert refused_code(lambda: accept(profile, assignment, frozen)) == "cohort_too_small"


def accepted(profile: Profile, server: RecordingServer) -> Commitment:
    run = server.run
    assignment = Assignment.model_validate(run.assignment())
    return accept(profile, assignment, FrozenManifest(run.manifest_bytes))


def test_a_disclaimer_binds_before_it_is_told(tmp_path: Path, server: RecordingServer) -> None:
    profile = profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)
    run = server.run
    accepted(profile, server)
    run.state = "aborted"
    session = Session(server.url, identity=Identity(server.client_id, profile.key()), patience_s=1.0)
    for _ in range(2):  # asked again after a failure, the server is told again
        assert refused_code(lambda: disclaim(profile, session, run.run_id)) == "not_found"
        assert profile.ledger.book().epsilon_committed == 0
    session.close()
    assert refused_code(lambda: accepted(profile, server)) == "run_disclaimed"
    told = [heard for heard in server.heard if heard.method == "POST" and "disclaimers" in heard.path]
    assert len(told) == 2
    said = json.loads(told[-1].body)
    signature = base64.urlsafe_b64decode(said["signature"] + "==")
    profile.key().public_key().verify(signature, said["statement"].encode())
    voids = (profile.ledger.folder / "ledger.jsonl").read_text().count('"kind":"void"')
    assert voids == 1


def test_a_run_that_goes_on_is_not_disclaimed(tmp_path: Path, server: RecordingServer) -> None:
    profile = profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)
    accepted(profile, server)
    session = Session(server.url, identity=Identity(server.client_id, profile.key()), patience_s=1.0)
    assert refused_code(lambda: disclaim(profile, session, server.run.run_id)) == "run_not_over"
    session.close()
    assert profile.ledger.book().epsilon_committed > 0
    assert not [heard for heard in server.heard if "disclaimers" in heard.path]
    assert accepted(profile, server).void is False


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"labels": ["ham", "advert"]}, "unknown_label"),
        ({"text_fields": ["subject", "footer"]}, "broken_line"),
        ({"label_field": "kind"}, "broken_line"),
        ({"person_field": "author", "person_records": 9}, "person_missing"),
        ({"person_field": "label", "person_records": 1}, "person_over_cap"),
    ],
)
def test_data_that_are_not_as_declared_are_told_at_enrolment(
    tmp_path: Path, server: RecordingServer, changed: dict[str, Any], code: str
) -> None:
    asked = wish(tmp_path, server, terms=changed)
    if code == "person_over_cap":
        asked.data.write_text("".join(json.dumps(mail) + "\n" for mail in MAILS * 2))
    assert refused_code(lambda: enrol(asked)) == code
    assert server.heard == []
    assert not (tmp_path / "ledgers").exists()


def test_data_of_one_label_are_told_at_enrolment(tmp_path: Path, server: RecordingServer) -> None:
    asked = wish(tmp_path, server)
    asked.data.write_text(json.dumps(MAILS[0]) + "\n")
    assert refused_code(lambda: enrol(asked)) == "one_class_only"


def test_data_that_are_not_as_the_edited_policy_declares_commit_nothing(
    tmp_path: Path, server: RecordingServer
) -> None:
    profile = profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)
    edited = TERMS | {"labels": ["ham", "advert"]}
    Policy.of(**edited).save(policy_path(Path(profile.config.home), "mailbox-3"))
    server.run.manifest = manifest(task={"labels": ["ham", "advert"]})
    assert refused_code(lambda: accepted(profile, server)) == "unknown_label"
    assert profile.ledger.book().commitments == {}


def standing(*, trust: str = "local") -> Standing:
    by_round = (epsilon_cost(2.0001), epsilon_cost(3.9999))
    run = Commitment(
        run_id="r",
        client_id="c",
        server="s",
        manifest_sha256="m",
        trust=trust,
        epsilon=by_round[-1],
        delta=10**13,
        epsilon_by_round=by_round,
        at="2026-01-01T00:00:00Z",
    )
    return Standing("mailbox-3", 1, 2, run)


def test_a_round_is_told_with_its_epsilon_rounded_up() -> None:
    out = io.StringIO()
    watcher = watcher_for(out)
    watcher.step(standing(), 1, 2)
    watcher.sent(standing())
    watcher.sent(standing(trust="none"))
    watcher.close()
    assert out.getvalue().splitlines() == [
        "mailbox-3: round 1 of 2 sent, epsilon 2.001 of 4.000 at delta 1e-5",
        "mailbox-3: round 1 of 2 sent, no privacy claim",
    ]


def test_the_bar_shows_rounds_and_epsilon_and_no_time() -> None:
    out = io.StringIO()
    watcher = BarWatcher(Console(file=out, force_terminal=True, width=120, color_system=None))
    watcher.step(standing(), 2, 2)
    watcher.sent(standing())
    watcher.note("mailbox-3", "[code] a note")
    watcher.close()
    shown = out.getvalue()
    assert "round 1 of 2" in shown
    assert "epsilon 2.001 of 4.000" in shown
    assert "[code] a note" in shown
    assert "0:00" not in shown


def test_status_rounds_what_is_spent_up_and_what_is_left_down(
    tmp_path: Path, server: RecordingServer
) -> None:
    profile = profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)
    run = server.run
    committed = accept(
        profile, Assignment.model_validate(run.assignment()), FrozenManifest(run.manifest_bytes)
    )
    total, delta, line = status_lines(profile)
    left = f"{(8 * 10**9 - committed.epsilon) // 10**6 / 1000:.3f}"
    assert total.endswith(f"{left} left of 8.000")
    assert delta == "delta 1e-5 committed, 0 left of 1e-5"
    assert line.startswith(f"run {run.run_id}: 0 of 2 rounds sent, epsilon 0.000 of ")
    assert Ledger(Path(profile.config.home), "mailbox-3").book().epsilon_spent == 0
