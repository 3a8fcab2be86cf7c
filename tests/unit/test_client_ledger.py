"""The data set's own ledger: what it admits, and what no crash and no request can make it admit."""

import json
import os
import resource
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.amounts import delta_ceiling, delta_cost, epsilon_ceiling, epsilon_cost, epsilon_text
from client.book import Contribution, Stage
from client.durable import private_folder
from client.errors import ClientError
from client.journal import Journal
from client.ledger import Ceiling, Ledger, Terms

CEILING = Ceiling(epsilon=epsilon_ceiling(8.0), delta=delta_ceiling(1e-5))
RUN = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"


def terms(run_id: str = RUN, *, epsilon: float = 4.0, rounds: int = 4, client: str = "c") -> Terms:
    by_round = tuple(epsilon_cost(epsilon * number / rounds) for number in range(1, rounds + 1))
    return Terms(
        run_id=run_id,
        client_id=client,
        server="https://one",
        manifest_sha256="a" * 64,
        trust="local",
        epsilon=by_round[-1],
        delta=delta_cost(1e-6),
        epsilon_by_round=by_round,
    )


def update(digest: str = "1", *, adapter: str = "f") -> Contribution:
    return Contribution(
        round_id=str(uuid4()),
        update_id=str(uuid4()),
        sha256=digest * 64,
        size_bytes=3,
        adapter_sha256=adapter * 64,
        stage=Stage.PREPARED,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, "mailbox-3")


def code_of(error: pytest.ExceptionInfo[ClientError]) -> str:
    return error.value.code


def test_costs_are_rounded_up_and_ceilings_down() -> None:
    assert (epsilon_cost(0.1234567891), epsilon_ceiling(0.1234567899)) == (123_456_790, 123_456_789)
    assert delta_cost(1e-5) == delta_ceiling(1e-5) == 10**13  # the decimal that was written, not its float
    assert (epsilon_text(1_000_001, spent=True), epsilon_text(1_999_999, spent=False)) == ("0.002", "0.001")
    with pytest.raises(ValueError, match="finite"):
        epsilon_cost(float("nan"))


def test_a_run_over_the_ceiling_is_refused_and_leaves_nothing(ledger: Ledger) -> None:
    ledger.commit(terms(epsilon=5.0), ceiling=CEILING)
    with pytest.raises(ClientError) as refused:
        ledger.commit(terms("other", epsilon=3.1), ceiling=CEILING)
    assert code_of(refused) == "over_ceiling"
    assert set(ledger.book().commitments) == {RUN}


def test_delta_and_the_yearly_ceiling_bind_too(ledger: Ledger) -> None:
    with pytest.raises(ClientError) as refused:
        ledger.commit(replace(terms(), delta=delta_cost(1.1e-5)), ceiling=CEILING)
    assert code_of(refused) == "over_ceiling"
    with pytest.raises(ClientError) as refused:
        ledger.commit(terms(), ceiling=replace(CEILING, epsilon_per_year=epsilon_ceiling(3.9)))
    assert code_of(refused) == "over_ceiling"


def test_another_server_and_another_profile_share_the_data_sets_ceiling(tmp_path: Path) -> None:
    Ledger(tmp_path, "mailbox-3").commit(terms(epsilon=5.0), ceiling=CEILING)
    elsewhere = replace(terms("other", epsilon=5.0, client="d"), server="https://two")
    with pytest.raises(ClientError) as refused:
        Ledger(tmp_path, "mailbox-3").commit(elsewhere, ceiling=CEILING)
    assert code_of(refused) == "over_ceiling"
    Ledger(tmp_path, "mailbox-4").commit(elsewhere, ceiling=CEILING)  # another data set has its own


def test_one_file_cannot_be_enrolled_under_two_names(tmp_path: Path) -> None:
    Ledger(tmp_path, "mailbox-3").enrol_data("d" * 64)
    Ledger(tmp_path, "mailbox-3").enrol_data("d" * 64)
    with pytest.raises(ClientError) as refused:
        Ledger(tmp_path, "fresh-name").enrol_data("d" * 64)
    assert code_of(refused) == "data_known"


def test_a_known_run_with_another_manifest_is_refused(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    assert ledger.commit(terms(), ceiling=CEILING).run_id == RUN
    with pytest.raises(ClientError) as refused:
        ledger.commit(replace(terms(), manifest_sha256="b" * 64), ceiling=CEILING)
    assert code_of(refused) == "manifest_changed"


def test_one_data_set_takes_part_in_a_run_once(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    with pytest.raises(ClientError) as refused:
        ledger.commit(terms(client="a second client on the same data"), ceiling=CEILING)
    assert code_of(refused) == "run_taken"


def test_an_unsent_attempt_may_be_dropped_and_trained_again(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    ledger.prepare(RUN, 1, update("1"))
    ledger.discard(RUN, 1, sha256="1" * 64)
    ledger.prepare(RUN, 1, update("2"))
    ledger.spend(RUN, 1, sha256="2" * 64)
    assert ledger.book().epsilon_spent == epsilon_cost(1.0)


def test_after_spent_nothing_but_the_same_bytes_is_admitted(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    ledger.prepare(RUN, 1, update("1"))
    ledger.spend(RUN, 1, sha256="1" * 64)
    for act, code in (
        (lambda: ledger.discard(RUN, 1, sha256="1" * 64), "round_taken"),
        (lambda: ledger.prepare(RUN, 1, update("2")), "round_taken"),
        (lambda: ledger.spend(RUN, 1, sha256="2" * 64), "update_changed"),
        (lambda: ledger.void(RUN), "already_sent"),
    ):
        with pytest.raises(ClientError) as refused:
            act()
        assert code_of(refused) == code


def test_a_round_opened_again_gets_the_same_bytes_only_from_the_same_adapter(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    ledger.prepare(RUN, 1, update("1", adapter="f"))
    ledger.spend(RUN, 1, sha256="1" * 64)
    again = replace(update("1", adapter="f"), round_id=str(uuid4()))
    ledger.readdress(RUN, 1, again)
    assert ledger.book().contribution(RUN, 1).round_id == again.round_id
    with pytest.raises(ClientError) as refused:
        ledger.readdress(RUN, 1, update("1", adapter="e"))
    assert code_of(refused) == "round_replayed"


def test_rounds_beyond_the_priced_schedule_are_refused(ledger: Ledger) -> None:
    ledger.commit(terms(rounds=2), ceiling=CEILING)
    for number in (0, 3):
        with pytest.raises(ClientError) as refused:
            ledger.prepare(RUN, number, update())
        assert code_of(refused) == "round_not_priced"


def test_a_disclaimed_run_gives_its_cost_back_and_is_over_for_ever(ledger: Ledger) -> None:
    ledger.commit(terms(epsilon=8.0), ceiling=CEILING)
    ledger.prepare(RUN, 1, update())
    ledger.void(RUN)
    assert ledger.book().epsilon_committed == 0
    with pytest.raises(ClientError) as refused:
        ledger.spend(RUN, 1, sha256="1" * 64)
    assert code_of(refused) == "run_disclaimed"
    with pytest.raises(ClientError) as refused:
        ledger.commit(terms(epsilon=8.0), ceiling=CEILING)
    assert code_of(refused) == "run_disclaimed"


def ledger_file(ledger: Ledger) -> Path:
    return ledger.folder / "ledger.jsonl"


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_cut_and_noted(ledger: Ledger, kept: int) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    whole = ledger_file(ledger).read_bytes()
    ledger.prepare(RUN, 1, update())
    line = ledger_file(ledger).read_bytes()[len(whole) :]
    ledger_file(ledger).write_bytes(whole + line[:kept])
    assert ledger.book().contribution(RUN, 1) is None
    last = json.loads(ledger_file(ledger).read_bytes().splitlines()[-1])
    assert last["kind"] == "repaired"
    ledger.prepare(RUN, 1, update("2"))


@pytest.mark.parametrize("line", [1, 2, 3])
def test_any_other_damage_is_refused_with_its_line(ledger: Ledger, line: int) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    ledger.prepare(RUN, 1, update())
    lines = ledger_file(ledger).read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"seq"', b'"seg"')
    ledger_file(ledger).write_bytes(b"".join(lines))
    with pytest.raises(ClientError) as refused:
        ledger.book()
    assert (code_of(refused), refused.value.members["line"]) == ("ledger_damaged", line)


def test_a_line_taken_out_or_put_twice_is_refused(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    ledger.prepare(RUN, 1, update())
    ledger.spend(RUN, 1, sha256="1" * 64)
    lines = ledger_file(ledger).read_bytes().splitlines(keepends=True)
    for changed in (lines[:2] + lines[3:], [*lines, lines[-1]], lines[1:]):
        ledger_file(ledger).write_bytes(b"".join(changed))
        with pytest.raises(ClientError) as refused:
            ledger.book()
        assert code_of(refused) == "ledger_damaged"


def test_a_full_disk_leaves_the_ledger_as_it_was(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    before = ledger_file(ledger).read_bytes()
    child = os.fork()
    if child == 0:  # a limit on file size cannot be lifted again in this process
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, len(before) + 10))
        try:
            ledger.prepare(RUN, 1, update())
        except ClientError as error:
            os._exit(0 if error.code == "cannot_write" else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger_file(ledger).read_bytes() == before


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("send"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("drop"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("tear"), st.integers(1, 60), st.booleans()),
    ),
    max_size=30,
)


class Machine:
    """A client over crashes: what it would send is recorded, what its memory holds is not trusted."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.trained = 0
        self.sent: dict[int, set[str]] = {}
        self.ledger().commit(terms(rounds=3), ceiling=CEILING)

    def ledger(self) -> Ledger:
        return Ledger(self.home, "mailbox-3")  # a new process each time

    def train(self, number: int, *, crash: bool) -> None:
        self.trained += 1
        digest = f"{self.trained:064x}"
        if not crash:
            self.ledger().prepare(RUN, number, replace(update(), sha256=digest))

    def send(self, number: int, *, crash: bool) -> None:
        known = self.ledger().book().contribution(RUN, number)
        if known is None:
            return
        if known.stage is Stage.PREPARED:
            self.ledger().spend(RUN, number, sha256=known.sha256)
        if not crash:
            self.sent.setdefault(number, set()).add(known.sha256)
            self.ledger().acknowledge(RUN, number, sha256=known.sha256, receipt={})

    def drop(self, number: int) -> None:
        known = self.ledger().book().contribution(RUN, number)
        if known is not None:
            self.ledger().discard(RUN, number, sha256=known.sha256)

    def tear(self, length: int) -> None:
        """Lose an append in mid-write: part of a line that no call has acknowledged."""
        with (self.ledger().folder / "ledger.jsonl").open("ab") as file:
            file.write(b'{"at":"2026-01-01T00:00:00Z","fields":{"number":1,"run_id":"x"},"hash":"'[:length])


@given(acts=ACTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_interleaving_of_crashes_lets_two_digests_out_for_one_round(
    acts: list[tuple[str, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = Machine(tmp_path_factory.mktemp("ledger"))
    for kind, number, crash in acts:
        try:
            if kind == "train":
                machine.train(number, crash=crash)
            elif kind == "send":
                machine.send(number, crash=crash)
            elif kind == "drop":
                machine.drop(number)
            else:
                machine.tear(number)
        except ClientError as refused:
            if refused.code not in {"round_taken", "update_changed"}:
                raise
    assert all(len(digests) == 1 for digests in machine.sent.values())
    book = machine.ledger().book()
    assert book.epsilon_committed == epsilon_cost(4.0)


def test_a_run_that_was_never_accepted_can_be_disclaimed_and_is_over_for_ever(ledger: Ledger) -> None:
    ledger.void(RUN)
    with pytest.raises(ClientError) as refused:
        ledger.commit(terms(epsilon=8.0), ceiling=CEILING)
    assert code_of(refused) == "run_disclaimed"
    assert ledger.book().epsilon_committed == 0


def test_of_two_that_enrol_one_file_as_two_data_sets_one_is_refused(tmp_path: Path) -> None:
    for number in range(10):
        home, start = tmp_path / str(number), threading.Barrier(2)

        def enrol(name: str, *, home: Path = home, start: threading.Barrier = start) -> str:
            start.wait()
            try:
                Ledger(home, name).enrol_data("d" * 64)
            except ClientError as error:
                return error.code
            return "enrolled"

        with ThreadPoolExecutor(2) as pool:
            told = sorted(pool.map(enrol, ("mailbox-3", "fresh-name")))
        assert told == ["data_known", "enrolled"]


def test_a_copied_ledger_is_refused_until_a_person_says_that_the_old_one_is_gone(ledger: Ledger) -> None:
    ledger.commit(terms(), ceiling=CEILING)
    file, copy = ledger_file(ledger), ledger_file(ledger).with_name("copy")
    shutil.copy2(file, copy)
    copy.replace(file)  # the name is right, the file is another
    before = file.read_bytes()
    for act in (
        ledger.book,
        lambda: ledger.prepare(RUN, 1, update()),
        lambda: ledger.commit(terms("o"), ceiling=CEILING),
    ):
        with pytest.raises(ClientError, match="ledger-moved") as refused:
            act()
        assert code_of(refused) == "ledger_copied"
    assert file.read_bytes() == before
    ledger.rebind()
    ledger.prepare(RUN, 1, update())
    assert set(ledger.book().commitments) == {RUN}


def test_a_ledger_that_is_moved_within_a_file_system_stays_bound(tmp_path: Path) -> None:
    Ledger(tmp_path / "old", "mailbox-3").commit(terms(), ceiling=CEILING)
    (tmp_path / "old").rename(tmp_path / "new")
    Ledger(tmp_path / "new", "mailbox-3").prepare(RUN, 1, update())


def test_a_ledger_from_before_ledgers_were_bound_is_bound_by_its_next_entry(ledger: Ledger) -> None:
    private_folder(ledger.folder)
    with Journal(ledger_file(ledger)).open() as journal:
        journal.append("open", {"dataset": "mailbox-3"})
    assert ledger.book().inode is None  # reading changes nothing
    ledger.commit(terms(), ceiling=CEILING)
    assert ledger.book().inode == ledger_file(ledger).stat().st_ino
