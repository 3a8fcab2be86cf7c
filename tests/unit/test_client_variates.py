"""SCAFFOLD at the client: which round's c_i holds is the server's word, and without it nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from client.errors import RoundMissed
from client.profile import Profile
from client.rounds import OnStep, submit
from client.session import Identity, Session
from client.turns import KEPT, Turn
from client.wire import FrozenManifest
from engines.lora.states import VARIATE
from tests.client_folders import NAMES, RandomTrainer, manifest, profile_in
from tests.client_steps import fetched, made
from tests.recording import PlayedRun, RecordingServer

STEPS, RATE = 2, 0.5
PLAN = {"momentum": 0.0, "control_variates": "scaffold", "local_steps": STEPS, "learning_rate": RATE}


def state(*, seed: int | None = None) -> bytes:
    """A round's adapter of zeros; with a seed, beside some c."""
    tensors = {name: torch.zeros(shape) for name, shape in NAMES.items()}
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        tensors |= {f"{name}{VARIATE}": torch.randn(NAMES[name], generator=generator) for name in NAMES}
    content: bytes = save(tensors)
    return content


class Noting(RandomTrainer):
    """A trainer that notes with which c_i it is asked to train."""

    def __init__(self) -> None:
        super().__init__()
        self.variates: list[dict[str, Tensor] | None] = []

    def train(
        self, profile: Profile, frozen: FrozenManifest, adapter: bytes, *, turn: Turn, on_step: OnStep
    ) -> dict[str, Tensor]:
        self.variates.append(None if turn.variate is None else dict(turn.variate))
        return super().train(profile, frozen, adapter, turn=turn, on_step=on_step)


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(training=PLAN, rounds=4), state())) as running:
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
def trainer() -> Noting:
    return Noting()


def sent(profile: Profile, session: Session, trainer: RandomTrainer) -> dict[str, Tensor]:
    files = fetched(profile, session)
    made(profile, files, trainer)
    submit(profile, session, files)
    update: dict[str, Tensor] = load(files.update_path.read_bytes())
    return update


def expected(own: dict[str, Tensor] | None, adapter: bytes, update: dict[str, Tensor]) -> dict[str, Tensor]:
    """c_i - c - Delta_i / (K eta), written out."""
    held = load(adapter)
    return {
        name: (own[name] if own else 0.0)
        - held.get(f"{name}{VARIATE}", torch.zeros(NAMES[name]))
        - change / (STEPS * RATE)
        for name, change in update.items()
    }


def alike(found: dict[str, Tensor] | None, wanted: dict[str, Tensor]) -> bool:
    return found is not None and all(
        torch.allclose(found[name], one, rtol=1e-5, atol=1e-6) for name, one in wanted.items()
    )


def test_a_counted_update_leaves_a_variate_and_one_that_was_not_leaves_none(
    server: RecordingServer, profile: Profile, session: Session, trainer: Noting
) -> None:
    """Round 1 counts, round 2 does not: round 3 goes on from round 1's c_i as if 2 had never been."""
    first = expected(None, server.run.adapter, sent(profile, session, trainer))
    server.run.open_again(number=2, adapter=state(seed=2))
    server.run.counted = 1
    sent(profile, session, trainer)
    server.run.open_again(number=3)
    third = sent(profile, session, trainer)
    server.run.open_again(number=4, adapter=state(seed=4))
    server.run.counted = 3
    sent(profile, session, trainer)
    assert trainer.variates[0] is None
    assert alike(trainer.variates[1], first)
    assert alike(trainer.variates[2], first)
    assert alike(trainer.variates[3], expected(first, state(seed=2), third))


def test_who_was_never_counted_goes_on_from_zero(
    server: RecordingServer, profile: Profile, session: Session, trainer: Noting
) -> None:
    sent(profile, session, trainer)
    server.run.open_again(number=2, adapter=state(seed=2))
    sent(profile, session, trainer)
    assert trainer.variates == [None, None]


def test_a_lost_variate_ends_this_clients_part_in_the_run_uncharged(
    server: RecordingServer, profile: Profile, session: Session, trainer: Noting
) -> None:
    sent(profile, session, trainer)
    (profile.round_folder(server.run.run_id, 1) / KEPT).unlink()
    server.run.counted = 1
    for number in (2, 3):
        server.run.open_again(number=number, adapter=state(seed=number))
        with pytest.raises(RoundMissed) as missed:
            made(profile, fetched(profile, session), trainer)
        assert missed.value.code == "variate_lost"
        assert profile.ledger.book().contribution(server.run.run_id, number) is None
    assert trainer.trained == 1
    assert len(server.bodies()) == 1


def test_a_variate_of_an_update_that_never_left_is_used_for_nothing_whatever_the_server_says(
    server: RecordingServer, profile: Profile, session: Session, trainer: Noting
) -> None:
    """It is made of noise that nobody was charged for."""
    made(profile, fetched(profile, session), trainer)
    server.run.open_again(number=2, adapter=state(seed=2))
    for counted in (1, 2):
        server.run.counted = counted
        with pytest.raises(RoundMissed) as missed:
            made(profile, fetched(profile, session), trainer)
        assert missed.value.code == "variate_lost"
    assert trainer.trained == 1


def test_an_update_that_was_dropped_before_it_left_takes_its_variate_with_it(
    server: RecordingServer, profile: Profile, session: Session, trainer: Noting
) -> None:
    files = fetched(profile, session)
    made(profile, files, trainer)
    files.update_path.unlink()
    update = sent(profile, session, trainer)
    server.run.open_again(number=2, adapter=state(seed=2))
    server.run.counted = 1
    sent(profile, session, trainer)
    assert alike(trainer.variates[-1], expected(None, state(), update))
