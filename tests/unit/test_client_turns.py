"""A client's turn in a round: at which rank, what is kept at home, and from where it is gone on."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from torch import Tensor

from app.core.canonical import canonical_bytes
from client.accepting import accept
from client.errors import ClientError
from client.ledger import Contribution, Stage
from client.pricing import terms_of
from client.profile import Profile
from client.round_files import RoundFiles
from client.turns import KEPT, Turn, keep, kept_before, manifest_at, most_bytes, sent_shapes
from client.wire import Assignment, FrozenManifest
from tests.client_folders import manifest, profile_in

RUN = str(uuid4())
A = "base_model.model.layer.0.query.lora_A.weight"
B = "base_model.model.layer.0.query.lora_B.weight"
HEAD = "base_model.model.classifier.weight"


def plan(method: str, **lora: Any) -> dict[str, Any]:
    """Five rounds of one adapted module of 8 x 6."""
    frozen = manifest(lora={"method": method, **lora}, rounds=5)
    shapes = {A: [4, 6], B: [8, 4], HEAD: [2, 8]}
    frozen["tensors"] = [
        {"name": name, "shape": shape, "trained": not (method == "fedsa" and name == B)}
        for name, shape in sorted(shapes.items())
    ]
    return frozen


def frozen_of(document: dict[str, Any]) -> FrozenManifest:
    return FrozenManifest(canonical_bytes(document))


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return profile_in(tmp_path / "mailbox", server="https://one.example", client_id=str(uuid4()))


def contribution(number: int) -> Contribution:
    return Contribution(
        round_id=str(uuid4()),
        update_id=str(uuid4()),
        sha256=f"{number:064x}",
        size_bytes=10,
        adapter_sha256="a" * 64,
        stage=Stage.PREPARED,
    )


def trained(profile: Profile, number: int, change: Tensor, *, is_sent: bool) -> None:
    """A round whose B changed by so much, sent or left behind."""
    one = contribution(number)
    files = RoundFiles(profile.round_folder(RUN, number))
    files.folder.mkdir(parents=True)
    keep(files, {B: change}, before=kept_before(profile, RUN, number))
    profile.ledger.prepare(RUN, number, one)
    if is_sent:
        profile.ledger.spend(RUN, number, sha256=one.sha256)


def test_what_was_trained_and_never_sent_is_not_gone_on_from(profile: Profile) -> None:
    """It is not charged: what it says of the data may not enter what is sent later."""
    frozen = frozen_of(plan("fedsa"))
    terms = terms_of(frozen, run_id=RUN, client_id=profile.config.client_id, server=profile.config.server)
    profile.ledger.commit(terms, ceiling=profile.policy.ceiling)
    assert kept_before(profile, RUN, 1) is None
    one, two, three = (torch.full((8, 4), value) for value in (1.0, 10.0, 100.0))
    trained(profile, 1, one, is_sent=True)
    trained(profile, 2, two, is_sent=False)
    trained(profile, 3, three, is_sent=True)
    assert torch.equal(kept_before(profile, RUN, 2)[B], one)  # type: ignore[index]  # there is something
    assert torch.equal(kept_before(profile, RUN, 3)[B], one)  # type: ignore[index]
    assert torch.equal(kept_before(profile, RUN, 4)[B], one + three)  # type: ignore[index]
    assert kept_before(profile, str(uuid4()), 4) is None


def test_what_is_kept_is_readable_by_its_owner_alone(profile: Profile) -> None:
    files = RoundFiles(profile.round_folder(RUN, 1))
    files.folder.mkdir(parents=True)
    keep(files, {B: torch.ones(8, 4)}, before=None)
    assert (files.folder / KEPT).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("rank", [3, 16])
def test_a_rank_that_the_plan_does_not_name_is_refused(profile: Profile, rank: int) -> None:
    """A server could otherwise send a client off to train what nobody planned."""
    frozen = frozen_of(plan("flexlora", ranks=[2, 4]))
    assignment = Assignment(
        round_id=uuid4(),
        run_id=RUN,
        number=1,
        rounds=5,
        manifest_sha256=frozen.sha256,
        adapter_sha256="a" * 64,
        rank=rank,
    )
    with pytest.raises(ClientError) as refused:
        accept(profile, assignment, frozen)
    assert refused.value.code == "rank_not_planned"
    assert RUN not in profile.ledger.book().commitments


def test_a_smaller_rank_has_the_runs_scale_and_smaller_factors() -> None:
    whole = plan("flexlora", ranks=[1, 2, 4])
    smaller = manifest_at(whole, 2)
    assert (
        smaller["lora"]["alpha"] / smaller["lora"]["rank"] == whole["lora"]["alpha"] / whole["lora"]["rank"]
    )
    assert sent_shapes(whole, Turn(1, 2)) == {A: (2, 6), B: (8, 2), HEAD: (2, 8)}
    assert sent_shapes(whole, Turn(1)) == {A: (4, 6), B: (8, 4), HEAD: (2, 8)}
    assert sent_shapes(plan("rolora"), Turn(2)) == {A: (4, 6), HEAD: (2, 8)}
    assert sent_shapes(plan("fedsa"), Turn(2)) == {A: (4, 6), HEAD: (2, 8)}


def test_a_download_may_be_as_long_as_the_base_weights_can_take_up() -> None:
    trained_bytes = 4 * (4 * 6 + 8 * 4 + 2 * 8)
    assert most_bytes(frozen_of(plan("fedit")).manifest) == trained_bytes
    assert most_bytes(frozen_of(plan("flora")).manifest) == trained_bytes + 4 * 6 * (8 + 6)
