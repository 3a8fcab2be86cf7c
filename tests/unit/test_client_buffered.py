"""A client in a buffered run: late updates go to the open buffer, old ones are dropped, and P is the most."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.asking import list_assignments
from client.book import Contribution, Stage
from client.errors import ClientError, RoundMissed
from client.policy import Policy, judge
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import fetch, submit, train
from client.serving import Seat, Service
from client.session import Identity, Session
from client.watching import LineWatcher
from client.wire import FrozenManifest
from tests.client_folders import TERMS, RandomTrainer, adapter, manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, canonical, problem

ROUNDS, PARTICIPATIONS = 6, 2
BUFFERED = {"participations": PARTICIPATIONS, "staleness": 1}


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    plan = manifest(buffered=BUFFERED, rounds=ROUNDS, quorum={"min_updates": 2, "max_updates": 2})
    with RecordingServer(PlayedRun(plan, adapter())) as running:
        yield running


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    return profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)


@pytest.fixture
def session(profile: Profile) -> Iterator[Session]:
    identity = Identity(profile.config.client_id, profile.key())
    running = Session(profile.config.server, identity=identity, patience_s=5.0)
    yield running
    running.close()


def trained(profile: Profile, session: Session) -> tuple[RoundFiles, Contribution]:
    files = fetch(profile, session, list_assignments(session, wait_s=0)[0])
    return files, train(profile, files, RandomTrainer(), on_step=lambda _done, _steps: None)


def puts(server: RecordingServer) -> list[Heard]:
    return [heard for heard in server.heard if heard.method == "PUT"]


def known(profile: Profile, server: RecordingServer, number: int) -> Contribution | None:
    return profile.ledger.book().contribution(server.run.run_id, number)


def open_buffer(server: RecordingServer, number: int) -> None:
    server.run.open_again(number=number, adapter=adapter() + b" " * number)


def test_an_update_that_is_late_goes_to_the_open_buffer_and_names_its_base(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files, update = trained(profile, session)
    open_buffer(server, 2)
    submit(profile, session, files)
    (sent,) = puts(server)
    assert sent.path == f"/v1/rounds/{server.run.round_id}/updates/{update.update_id}"
    assert sent.headers["DPFL-Base-Round"] == "1"
    one = known(profile, server, 1)
    assert one is not None
    assert (one.stage, one.round_id, one.sha256) == (Stage.SENT, server.run.round_id, update.sha256)


def test_a_buffer_that_closed_over_an_update_leaves_its_bytes_to_the_next(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files, update = trained(profile, session)
    server.script = lambda heard: problem(409, "round_closed") if heard.method == "PUT" else None
    with pytest.raises(RoundMissed):
        submit(profile, session, files)
    server.script = lambda _heard: None
    open_buffer(server, 2)
    submit(profile, session, files)
    first, second = puts(server)
    assert first.body == second.body
    assert [one.path.rpartition("/")[2] for one in (first, second)] == [update.update_id] * 2
    assert first.path != second.path


def test_an_unsent_update_that_has_become_too_old_is_dropped_and_not_charged(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files, _update = trained(profile, session)
    open_buffer(server, 3)
    with pytest.raises(RoundMissed) as missed:
        submit(profile, session, files)
    assert missed.value.code == "update_too_stale"
    assert (puts(server), known(profile, server, 1)) == ([], None)
    assert profile.ledger.book().epsilon_spent == 0


def test_nothing_is_spent_while_no_buffer_is_open(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    files, update = trained(profile, session)
    server.run.state = "paused"
    with pytest.raises(RoundMissed) as missed:
        submit(profile, session, files)
    assert missed.value.code == "buffer_closed"
    one = known(profile, server, 1)
    assert one == update
    assert one.stage is Stage.PREPARED


def test_a_run_costs_its_participations_and_no_update_more_is_trained(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    for number in (2, 5):
        open_buffer(server, number)
        files, _update = trained(profile, session)
        submit(profile, session, files)
    run = profile.ledger.book().commitments[server.run.run_id]
    assert len(run.epsilon_by_round) == PARTICIPATIONS
    assert (run.rounds_sent, run.epsilon_spent) == (PARTICIPATIONS, run.epsilon)
    assert run.is_used_up
    assert [run.epsilon_with(number) for number in (2, 5)] == list(run.epsilon_by_round)
    open_buffer(server, 6)
    with pytest.raises(ClientError) as refused:
        trained(profile, session)
    assert refused.value.code == "round_not_priced"
    assert len(puts(server)) == PARTICIPATIONS


@pytest.mark.parametrize(
    "changed",
    [{"relation": "replace_one"}, {"trust": "central", "unit": "client", "examples": {"kind": "all"}}],
)
def test_buffers_that_have_no_price_are_refused_by_a_willing_client(changed: dict[str, Any]) -> None:
    units = [str(changed.get("unit", "example"))]
    allowed = Policy.of(**(TERMS | {"trusts": ["local", "central"], "units": units}))
    plan = manifest(buffered=BUFFERED, rounds=ROUNDS, privacy=changed)
    with pytest.raises(ClientError) as refused:
        judge(FrozenManifest(canonical(plan)).manifest, allowed)
    assert refused.value.code == "plan_unsupported"
    judge(FrozenManifest(canonical(plan | {"buffered": None})).manifest, allowed)


def test_a_round_that_the_manifest_does_not_have_is_refused(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    open_buffer(server, ROUNDS + 1)
    with pytest.raises(ClientError) as refused:
        trained(profile, session)
    assert refused.value.code == "round_not_priced"


@pytest.mark.parametrize(("answer", "trained_in_all"), [("round_closed", 1), ("update_too_stale", 2)])
def test_a_served_client_sends_what_it_has_and_trains_anew_only_when_no_buffer_takes_it(
    server: RecordingServer, profile: Profile, session: Session, answer: str, trained_in_all: int
) -> None:
    def refuse_first(heard: Heard) -> Answer | None:
        if heard.method != "PUT":
            return None
        if len(puts(server)) == 1:
            open_buffer(server, 2)
            return problem(409, answer)
        server.run.state = "finished"
        return None

    server.script = refuse_first
    trainer = RandomTrainer()
    seat = Seat(profile, session, run_id=server.run.run_id)
    Service([seat], trainer=trainer, watcher=LineWatcher(sys.stderr)).run()
    assert trainer.trained == trained_in_all
    bases = [one.headers["DPFL-Base-Round"] for one in puts(server)]
    assert bases == ["1", "1" if trained_in_all == 1 else "2"]
    assert len({one.body for one in puts(server)}) == trained_in_all
    one = known(profile, server, 1)
    assert one is not None
    assert one.stage is (Stage.SENT if trained_in_all == 1 else Stage.SPENT)


def test_an_unsent_update_that_is_too_old_is_dropped_before_the_next_is_trained(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    trained(profile, session)
    open_buffer(server, 4)

    def finish(heard: Heard) -> Answer | None:
        if heard.method == "PUT":
            server.run.state = "finished"
        return None

    server.script = finish
    Service(
        [Seat(profile, session, run_id=server.run.run_id)],
        trainer=RandomTrainer(),
        watcher=LineWatcher(sys.stderr),
    ).run()
    assert known(profile, server, 1) is None
    assert [one.headers["DPFL-Base-Round"] for one in puts(server)] == ["4"]


def test_a_ledger_from_before_buffers_reads_as_it_did(profile: Profile, server: RecordingServer) -> None:
    old: dict[str, Any] = {
        "run_id": "r",
        "client_id": "c",
        "server": "s",
        "manifest_sha256": "a" * 64,
        "trust": "local",
        "epsilon": 2,
        "delta": 1,
        "epsilon_by_round": [1, 2],
    }
    book = profile.ledger.book()
    book.apply("commit", old, at="2026-01-01T00:00:00Z")
    assert not book.commitments["r"].is_buffered
    assert [book.commitments["r"].epsilon_with(number) for number in (1, 2)] == [1, 2]
