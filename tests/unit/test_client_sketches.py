"""`fedask` at the client: it trains in odd rounds alone, and even ones tell the rest of the same factors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save

from client.errors import ClientError, RoundMissed
from client.ledger import Contribution, Stage
from client.plan import TrainingPlan
from client.pricing import terms_of
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import OnStep, submit
from client.serving import Seat, Service
from client.session import Identity, Session
from client.sketching import second_message
from client.turns import KEPT, Turn, most_bytes, sent_shapes
from client.watching import LineWatcher
from client.wire import FrozenManifest
from engines.lora.fedask import basis
from engines.lora.states import BASIS
from tests.client_folders import RandomTrainer, manifest, profile_in
from tests.client_steps import fetched, made
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, canonical

MODULE = "base_model.model.layer.0.query"
A, B, HEAD = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight", "base_model.model.classifier.weight"
SHAPES = {A: [4, 6], B: [8, 4], HEAD: [2, 8]}
WIDTH = 5


def plan(**changed: Any) -> dict[str, Any]:
    made = manifest(lora={"method": "fedask", "sketch_width": WIDTH}, rounds=4) | changed
    made["tensors"] = [
        {"name": name, "shape": shape, "trained": True} for name, shape in sorted(SHAPES.items())
    ]
    return made


def state(*, of: bytes | None = None) -> bytes:
    """A round's adapter; with what the server makes of one client's sketch, where it is the second."""
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if of is not None:
        tensors[f"{MODULE}{BASIS}"] = basis(load(of)[B].double()).float().contiguous()
    return save(tensors)


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(plan(), state())) as running:
        yield running


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    return profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)


@pytest.fixture
def session(profile: Profile) -> Iterator[Session]:
    identity = Identity(profile.config.client_id, profile.key())
    with Session(profile.config.server, identity=identity, patience_s=5.0) as running:
        yield running


@pytest.fixture
def trainer() -> RandomTrainer:
    return RandomTrainer()


def sent(profile: Profile, session: Session, trainer: RandomTrainer) -> bytes:
    files = fetched(profile, session)
    made(profile, files, trainer)
    submit(profile, session, files)
    return files.update_path.read_bytes()


def test_both_messages_are_of_one_training_and_give_its_product(
    server: RecordingServer, profile: Profile, session: Session, trainer: RandomTrainer
) -> None:
    first = sent(profile, session, trainer)
    kept = load_file(profile.round_folder(server.run.run_id, 1) / KEPT)
    server.run.open_again(number=2, adapter=state(of=first))
    second = sent(profile, session, trainer)
    assert trainer.trained == 1
    assert {name: tuple(one.shape) for name, one in load(first).items()} == {B: (8, WIDTH)}
    assert {name: tuple(one.shape) for name, one in load(second).items()} == {A: (WIDTH, 6), HEAD: (2, 8)}
    product = 2.0 * kept[B].double() @ kept[A].double()
    found = load(server.run.adapter)[f"{MODULE}{BASIS}"].double() @ load(second)[A].double()
    assert float((found - product).norm() / product.norm()) < 1e-6
    start = load(state())
    assert not torch.equal(kept[A], start[A])  # factors whole,
    assert torch.equal(load(second)[HEAD], kept[HEAD])  # and a head by its change


def test_a_client_that_was_killed_between_the_messages_makes_the_same_bytes_again(
    server: RecordingServer, profile: Profile, session: Session, trainer: RandomTrainer
) -> None:
    first = sent(profile, session, trainer)
    server.run.open_again(number=2, adapter=state(of=first))
    files = fetched(profile, session)
    before = made(profile, files, trainer)
    files.update_path.unlink()  # prepared, and lost before a byte left
    again = Profile.open(profile.folder)
    after = made(again, RoundFiles(files.folder), RandomTrainer())
    assert after.sha256 == before.sha256
    submit(again, session, RoundFiles(files.folder))
    assert server.bodies()[-1] == files.update_path.read_bytes()


def test_a_sketch_that_was_dropped_before_it_left_takes_its_training_with_it(
    server: RecordingServer, profile: Profile, session: Session, trainer: RandomTrainer
) -> None:
    """The second message is of the training whose first one was sent, and of no other."""
    files = fetched(profile, session)
    made(profile, files, trainer)
    dropped = load_file(files.folder / KEPT)
    files.update_path.unlink()
    first = sent(profile, session, trainer)
    kept = load_file(files.folder / KEPT)
    assert not torch.equal(kept[B], dropped[B])
    server.run.open_again(number=2, adapter=state(of=first))
    assert torch.equal(load(sent(profile, session, trainer))[HEAD], kept[HEAD])


class Unusable(RandomTrainer):
    """A trainer whose result fails its checks."""

    def train(
        self, profile: Profile, frozen: FrozenManifest, adapter: bytes, *, turn: Turn, on_step: OnStep
    ) -> dict[str, torch.Tensor]:
        raise ClientError("update_unusable", "the update cannot be used")


def test_a_round_that_was_given_up_leaves_nothing_of_a_training_before(
    server: RecordingServer, profile: Profile, session: Session, trainer: RandomTrainer
) -> None:
    files = fetched(profile, session)
    made(profile, files, trainer)
    first = files.update_path.read_bytes()
    files.update_path.unlink()
    with pytest.raises(RoundMissed):
        made(profile, files, Unusable())
    assert not (files.folder / KEPT).exists()
    server.run.open_again(number=2, adapter=state(of=first))
    with pytest.raises(RoundMissed) as missed:
        made(profile, fetched(profile, session), trainer)
    assert missed.value.code == "nothing_to_finish"


@pytest.mark.parametrize("lost", ["never_sent", "folder"])
def test_who_has_nothing_to_finish_misses_the_round_uncharged(
    server: RecordingServer, profile: Profile, session: Session, trainer: RandomTrainer, lost: str
) -> None:
    files = fetched(profile, session)
    made(profile, files, trainer)
    first = files.update_path.read_bytes()
    if lost == "folder":
        submit(profile, session, files)
        (files.folder / KEPT).unlink()
    server.run.open_again(number=2, adapter=state(of=first))
    second = fetched(profile, session)
    with pytest.raises(RoundMissed) as missed:
        made(profile, second, trainer)
    assert missed.value.code == "nothing_to_finish"
    assert profile.ledger.book().contribution(server.run.run_id, 2) is None


def test_an_even_round_costs_nothing_and_an_odd_one_its_steps(
    server: RecordingServer, profile: Profile, session: Session, trainer: RandomTrainer
) -> None:
    run = terms_of(FrozenManifest(canonical(plan())), run_id="r", client_id="c", server="s")
    half = terms_of(FrozenManifest(canonical(manifest(rounds=2))), run_id="r", client_id="c", server="s")
    one, two = half.epsilon_by_round
    assert run.epsilon_by_round == (one, one, two, two)
    assert run.epsilon == two
    spent = []
    first = sent(profile, session, trainer)
    for number in (2, 3):
        spent.append(profile.ledger.book().commitments[server.run.run_id].epsilon_spent)
        server.run.open_again(number=number, adapter=state(of=first))
        sent(profile, session, trainer)
    spent.append(profile.ledger.book().commitments[server.run.run_id].epsilon_spent)
    assert spent == [one, one, two]
    assert trainer.trained == 2


def test_a_buffered_plan_of_it_would_be_charged_for_every_update(profile: Profile) -> None:
    """No server makes one; whoever sends it gets no round for nothing."""
    buffered = plan(buffered={"participations": 2, "staleness": 1})
    run = terms_of(FrozenManifest(canonical(buffered)), run_id="r", client_id="c", server="s")
    half = terms_of(FrozenManifest(canonical(manifest(rounds=2))), run_id="r", client_id="c", server="s")
    assert run.epsilon_by_round == half.epsilon_by_round


@pytest.mark.parametrize(("method", "is_trained"), [("fedask", False), ("ffa", True)])
def test_a_plan_of_it_whose_noise_the_server_would_add_is_refused(method: str, is_trained: bool) -> None:
    central = plan()
    central["lora"]["method"] = method
    central["privacy"] |= {"trust": "central", "unit": "client"}
    if is_trained:
        assert TrainingPlan.from_manifest(central).central
        return
    with pytest.raises(ClientError) as refused:
        TrainingPlan.from_manifest(central)
    assert refused.value.code == "unsupported_plan"


@pytest.mark.parametrize("rows", [None, 7])
def test_a_basis_that_does_not_fit_is_refused(
    server: RecordingServer, profile: Profile, session: Session, trainer: RandomTrainer, rows: int | None
) -> None:
    sent(profile, session, trainer)
    adapter = load(state())
    if rows is not None:
        adapter[f"{MODULE}{BASIS}"] = torch.zeros(rows, WIDTH)
    server.run.open_again(number=2, adapter=save(adapter))
    with pytest.raises(ClientError) as refused:
        made(profile, fetched(profile, session), trainer)
    assert refused.value.code == "adapter_unusable"
    assert Stage.PREPARED not in {one.stage for one in _contributions(profile, server).values()}


def _contributions(profile: Profile, server: RecordingServer) -> dict[int, Contribution]:
    return dict(profile.ledger.book().commitments[server.run.run_id].contributions)


def test_a_service_makes_nothing_of_the_data_ready_for_an_even_round(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    class Counting(RandomTrainer):
        readied = 0

        def make_ready(self, profile: Profile, frozen: FrozenManifest) -> None:
            self.readied += 1

    def next_round(heard: Heard) -> Answer | None:
        if heard.method != "PUT":
            return None
        answer = server.answer(heard)
        if server.run.number == 4:
            server.run.state = "finished"
        else:
            of = heard.body if server.run.number % 2 else None
            server.run.open_again(number=server.run.number + 1, adapter=state(of=of))
        return answer

    server.script, trainer = next_round, Counting()
    Service([Seat(profile, session)], trainer=trainer, watcher=LineWatcher(io.StringIO())).run()
    assert (trainer.readied, trainer.trained, len(server.bodies())) == (2, 2, 4)


def test_messages_and_downloads_have_the_planned_size_at_every_rank() -> None:
    wide = plan()
    wide["lora"] |= {"sketch_width": None, "ranks": [2, 4]}
    assert sent_shapes(wide, Turn(1, 2)) == sent_shapes(wide, Turn(3)) == {B: (8, 6)}
    assert sent_shapes(wide, Turn(2, 2)) == {A: (6, 6), HEAD: (2, 8)}
    frozen = FrozenManifest(canonical(plan()))
    assert most_bytes(frozen.manifest) == 4 * (4 * 6 + 8 * 4 + 2 * 8 + 8 * WIDTH)


def test_a_client_of_a_smaller_rank_answers_at_its_own_scale() -> None:
    wide = plan()
    wide["lora"] |= {"ranks": [2, 4]}
    generator = torch.Generator().manual_seed(1)
    whole = {A: torch.randn(2, 6, generator=generator), B: torch.randn(8, 2, generator=generator)}
    q = torch.linalg.qr(torch.randn(8, WIDTH, generator=generator))[0].contiguous()
    answer = second_message(wide, Turn(2, 2), whole, save({f"{MODULE}{BASIS}": q}))
    assert torch.allclose(answer[A], 2.0 * q.T @ whole[B] @ whole[A], atol=1e-5)
