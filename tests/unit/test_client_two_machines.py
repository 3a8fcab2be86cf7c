"""One client on two machines: the one with the network fetches and submits, the one with the data trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from cli.access import client_session
from cli.main import app
from client.asking import list_assignments
from client.book import Stage
from client.enrolment import Wish, enrol
from client.errors import ClientError
from client.pairing import Attachment, attach, write_card
from client.policy import Policy
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import fetch, submit, train
from client.session import Identity, Session
from client.turns import KEPT
from client.wire import Receipt
from tests.client_folders import MAILS, TERMS, RandomTrainer, adapter, manifest
from tests.recording import PlayedRun, RecordingServer


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        yield running


def replaced(source: str, target: str) -> str:
    """Copy as `cp -f` does: a finished update is read-only, which only root writes over."""
    Path(target).unlink(missing_ok=True)
    return str(shutil.copy2(source, target))


@dataclass
class Machines:
    """A: enrolled, without data. B: the data, without a network. Between them a folder that is carried."""

    root: Path
    a: Profile
    b: Profile

    @property
    def on_a(self) -> RoundFiles:
        return RoundFiles(self.root / "a" / "round")

    @property
    def on_b(self) -> RoundFiles:
        return RoundFiles(self.root / "b" / "round")

    def session(self) -> Session:
        return Session(
            self.a.config.server, identity=Identity(self.a.config.client_id, self.a.key()), patience_s=5.0
        )

    def fetch(self) -> None:
        with self.session() as session:
            fetch(self.a, session, list_assignments(session, wait_s=0)[0], into=self.on_a.folder)

    def carry_to_b(self) -> None:
        shutil.copytree(self.on_a.folder, self.on_b.folder, dirs_exist_ok=True, copy_function=replaced)

    def carry_to_a(self) -> None:
        shutil.rmtree(self.on_a.folder)
        shutil.copytree(self.on_b.folder, self.on_a.folder)

    def train(self, profile: Profile | None = None, *, files: RoundFiles | None = None) -> int:
        """Train on B; returns how often the data were trained on."""
        trainer = RandomTrainer()
        train(profile or self.b, files or self.on_b, trainer, on_step=lambda _done, _steps: None)
        return trainer.trained

    def submit(self) -> Receipt:
        with self.session() as session:
            return submit(self.a, session, self.on_a)

    def round_trip(self) -> None:
        self.fetch()
        self.carry_to_b()
        self.train()
        self.carry_to_a()


def attached(root: Path, card: Path, *, home: str = "ledgers") -> Profile:
    data = root / "mails.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(mail) + "\n" for mail in MAILS))
    return attach(
        Attachment(
            card=card, folder=root / "profile", data=data, base_model_folders={"x": "/y"}, home=root / home
        )
    )


@pytest.fixture
def machines(server: RecordingServer, tmp_path: Path) -> Machines:
    here = tmp_path / "a"
    here.mkdir()
    wish = Wish(
        folder=here / "profile",
        server=server.url,
        token="t",
        name="mailbox-3",
        data=None,
        policy=Policy.of(**TERMS, base_model_folders={"only on": "/machine/a"}),
        home=here / "ledgers",
    )
    a = enrol(wish)
    write_card(a, tmp_path / "card.json")
    return Machines(tmp_path, a, attached(tmp_path / "b", tmp_path / "card.json"))


def code_of(act: Any) -> str:
    with pytest.raises(ClientError) as refused:
        act()
    return refused.value.code


def test_a_round_is_fetched_on_one_machine_trained_on_another_and_sent_from_the_first(
    server: RecordingServer, machines: Machines
) -> None:
    machines.fetch()
    machines.carry_to_b()
    asked = len(server.heard)
    assert machines.train() == 1
    assert len(server.heard) == asked
    assert machines.b.ledger.book().contribution(server.run.run_id, 1).stage is Stage.SPENT
    machines.carry_to_a()
    receipt = machines.submit()
    known = machines.a.ledger.book().contribution(server.run.run_id, 1)
    assert (known.stage, known.update_id) == (Stage.SENT, str(receipt.update_id))
    assert server.bodies() == [machines.on_b.update_path.read_bytes()]
    assert machines.submit().sha256 == receipt.sha256
    assert len(set(server.bodies())) == 1


def test_what_was_handed_over_is_never_trained_again(machines: Machines, server: RecordingServer) -> None:
    machines.round_trip()
    first = machines.on_b.update_path.read_bytes()
    shutil.rmtree(machines.on_b.folder)  # lost on the way
    machines.carry_to_b()
    (machines.on_b.folder / "handover.json").unlink()
    machines.on_b.update_path.unlink()
    assert machines.train() == 0
    assert machines.on_b.update_path.read_bytes() == first
    assert machines.on_b.handover() is not None
    machines.submit()
    assert server.bodies() == [first]


def test_a_control_variate_stays_with_the_machine_that_trains(
    machines: Machines, server: RecordingServer
) -> None:
    """What is carried names the round that counted; the c_i of it never travels."""
    plain = {"momentum": 0.0, "control_variates": "scaffold"}
    server.run.manifest = manifest(training=plain)
    machines.round_trip()
    machines.submit()
    assert not (machines.on_b.folder / KEPT).exists()
    server.run.open_again(number=2)
    server.run.counted = 1
    machines.fetch()
    shutil.rmtree(machines.on_b.folder)
    machines.carry_to_b()
    assert machines.train() == 1
    run_id = server.run.run_id
    first, second = (load_file(machines.b.round_folder(run_id, number) / KEPT) for number in (1, 2))
    update = load_file(machines.on_b.update_path)
    for name, change in update.items():  # c is zero, and c_i' = c_i - Delta / (2 * .5)
        assert np.allclose(second[name], first[name] - change, atol=1e-5)


def test_a_round_from_another_adapter_is_not_trained_a_second_time(
    machines: Machines, server: RecordingServer
) -> None:
    machines.round_trip()
    server.run.open_again(adapter=adapter() + b" ")
    machines.fetch()
    machines.carry_to_b()
    assert code_of(machines.train) == "round_replayed"
    machines.carry_to_a()
    assert code_of(machines.submit) == "handover_mismatch"
    assert server.bodies() == []


def test_a_round_opened_again_from_the_same_adapter_gets_the_same_bytes(
    machines: Machines, server: RecordingServer
) -> None:
    machines.round_trip()
    server.run.open_again()
    machines.fetch()
    machines.submit()
    assert server.bodies() == [machines.on_b.update_path.read_bytes()]


def test_a_second_update_of_a_round_does_not_leave(machines: Machines, server: RecordingServer) -> None:
    machines.round_trip()
    machines.submit()
    other = attached(machines.root / "c", machines.root / "card.json")  # a second machine with the data
    files = RoundFiles(machines.root / "c" / "round")
    shutil.copytree(machines.on_a.folder, files.folder, ignore=shutil.ignore_patterns("update*", "handover*"))
    assert machines.train(other, files=files) == 1
    shutil.rmtree(machines.on_a.folder)
    shutil.copytree(files.folder, machines.on_a.folder)
    assert code_of(machines.submit) == "update_changed"
    assert len(server.bodies()) == 1


@pytest.mark.parametrize("kept", [Stage.PREPARED, Stage.SPENT])
def test_an_interrupted_sending_takes_no_other_update(
    machines: Machines, server: RecordingServer, kept: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    machines.round_trip()
    with monkeypatch.context() as broken:
        if kept is Stage.PREPARED:
            broken.setattr(machines.a.ledger, "spend", crash)
        else:
            broken.setattr("client.rounds._send", crash)
        with pytest.raises(KeyboardInterrupt):
            machines.submit()
    assert machines.a.ledger.book().contribution(server.run.run_id, 1).stage is kept
    content = machines.on_a.update_path.read_bytes()
    forge(machines.on_a, content[:-1] + bytes([content[-1] ^ 1]))
    assert code_of(machines.submit) == "update_changed"
    forge(machines.on_a, content)
    machines.submit()
    assert server.bodies() == [content]


def forge(files: RoundFiles, content: bytes) -> None:
    """Put other bytes in the place of an update, with all that is said of it."""
    stated = files.handover()
    assert stated is not None
    written = files.write_update(content, update_id=stated.update_id)
    files.write_handover(stated.model_copy(update={"sha256": written.sha256, "size_bytes": len(content)}))


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"run_id": "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"}, "handover_mismatch"),
        ({"number": 2}, "handover_mismatch"),
        ({"manifest_sha256": "0" * 64}, "handover_mismatch"),
        ({"adapter_sha256": "0" * 64}, "handover_mismatch"),
        ({"sha256": "0" * 64}, "update_changed"),
        ({"size_bytes": 3}, "update_changed"),
        ({"size_bytes": "many"}, "unexpected_answer"),
    ],
)
def test_a_handover_that_is_not_the_rounds_sends_and_spends_nothing(
    machines: Machines, server: RecordingServer, changed: dict[str, Any], code: str
) -> None:
    machines.round_trip()
    path = machines.on_a.folder / "handover.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert code_of(machines.submit) == code
    assert server.bodies() == []
    assert machines.a.ledger.book().contribution(server.run.run_id, 1) is None


def test_an_update_that_was_not_handed_over_is_not_taken(machines: Machines, server: RecordingServer) -> None:
    machines.round_trip()
    (machines.on_a.folder / "handover.json").unlink()
    assert code_of(machines.submit) == "update_not_prepared"
    assert server.bodies() == []


def test_a_machine_that_fetched_nothing_sends_nothing(machines: Machines, server: RecordingServer) -> None:
    machines.round_trip()
    (machines.a.ledger.folder / "ledger.jsonl").unlink()
    assert code_of(machines.submit) == "run_not_committed"
    assert server.bodies() == []


def test_a_crash_before_the_handover_loses_no_promise(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, server: RecordingServer
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    machines.fetch()
    machines.carry_to_b()
    with monkeypatch.context() as broken:
        broken.setattr("client.handing.RoundFiles.copy_update", crash)
        with pytest.raises(KeyboardInterrupt):
            machines.train()
    assert not machines.on_b.update_path.exists()
    assert machines.b.ledger.book().contribution(server.run.run_id, 1).stage is Stage.SPENT
    assert machines.train() == 0
    assert machines.on_b.handover() is not None


def test_each_machine_does_its_own_half_alone(machines: Machines) -> None:
    machines.fetch()
    assert code_of(lambda: machines.train(machines.a, files=machines.on_a)) == "data_elsewhere"
    assert code_of(machines.a.require_data) == "data_elsewhere"
    assert code_of(lambda: client_session(machines.b)) == "trains_only"
    assert (machines.a.key().private_bytes_raw()) != machines.b.key().private_bytes_raw()
    card = (machines.root / "card.json").read_text()
    assert "PRIVATE" not in card
    assert "/machine/a" not in card


def test_the_commands_make_a_card_attach_and_move_a_ledger(machines: Machines) -> None:
    root, run = machines.root, CliRunner()
    card, to = root / "again.json", root / "d"
    done = run.invoke(app, ["client", "card", "--folder", str(machines.a.folder), "--to", str(card)])
    assert done.exit_code == 0, done.output
    options = ["--card", str(card), "--data", machines.b.config.data, "--folder", str(to / "profile")]
    command = ["client", "attach", *options, "--ledgers", str(to / "ledgers")]
    done = run.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert machines.a.config.client_id in done.stdout
    assert f"epsilon {machines.a.policy.epsilon:g} at delta" in done.stdout  # what the card binds the data to
    assert "[already_enrolled]" in run.invoke(app, command).stderr
    shutil.move(to / "ledgers", to / "old")
    shutil.copytree(to / "old", to / "ledgers")
    profile = ["--folder", str(to / "profile")]
    assert "[ledger_copied]" in run.invoke(app, ["client", "status", *profile]).stderr
    assert run.invoke(app, ["client", "ledger-moved", *profile], input="n\n").exit_code == 1
    assert "[ledger_copied]" in run.invoke(app, ["client", "status", *profile]).stderr
    assert run.invoke(app, ["client", "ledger-moved", *profile], input="y\n").exit_code == 0
    assert run.invoke(app, ["client", "status", *profile]).exit_code == 0
    broken = run.invoke(app, ["client", "attach", *options[:1], machines.b.config.data, *options[2:]])
    assert "[card_invalid]" in broken.stderr


@pytest.mark.parametrize("text", ["[]", "{}", "1", '{"public_key": 1}', "no json"])
def test_a_declaration_that_is_none_of_ours_stops_no_update(tmp_path: Path, text: str) -> None:
    (tmp_path / "declaration.json").write_text(text)
    assert RoundFiles(tmp_path).declaration(key=bytes(32)) is None
