"""Trust `central`: the client's own price, its ledger, and updates that say nothing by being absent."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from client.accepting import join
from client.amounts import epsilon_cost
from client.asking import list_assignments
from client.book import Stage
from client.errors import ClientError
from client.ledger import Ceiling, Ledger
from client.policy import Policy, judge
from client.pricing import terms_of
from client.profile import Profile
from client.rounds import fetch, submit, train
from client.serving import Seat, Service
from client.session import Identity, Session
from client.standing import status_lines
from client.trainer import train_round
from client.watching import LineWatcher
from client.wire import FrozenManifest, Manifest
from engines.privacy import accounting
from engines.privacy.accounting import GaussianRun, Relation, epsilon_by_round
from tests.client_folders import TERMS, RandomTrainer, adapter, manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, canonical, problem
from tests.unit.tiny_model import manifest_of, trained_part_of, write_tiny_bert

CENTRAL = {"trust": "central", "unit": "client", "noise_multiplier": 1.5, "divisor": 4.0}
POISSON = {"kind": "poisson", "rate": 0.25, "cap": 100, "n_max": 202}

ADAPTIVE = {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 5.0}


def central(**changed: Any) -> dict[str, Any]:
    """A central run whose every client is in every round; keywords replace members of its privacy plan."""
    return manifest(privacy=CENTRAL | changed)


def drawn(**changed: Any) -> dict[str, Any]:
    """A central run with a secret Poisson cohort."""
    plan = central(cohort=POISSON, **changed)
    return plan | {"quorum": {"min_updates": 0, "max_updates": POISSON["cap"]}}


def frozen(values: dict[str, Any]) -> FrozenManifest:
    return FrozenManifest(canonical(values))


def read(values: dict[str, Any]) -> Manifest:
    return frozen(values).manifest


def terms(values: dict[str, Any]) -> Any:
    return terms_of(frozen(values), run_id="r", client_id="c", server="https://one")


def policy(**changed: Any) -> Policy:
    return Policy.of(**(TERMS | {"trusts": ["central"], "units": ["client"]} | changed))


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(central(), adapter())) as running:
        yield running


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    folder = tmp_path / "profile"
    return profile_in(
        folder, server=server.url, client_id=server.client_id, trusts=["central"], units=["client"]
    )


@pytest.fixture
def session(profile: Profile) -> Iterator[Session]:
    identity = Identity(profile.config.client_id, profile.key())
    with Session(profile.config.server, identity=identity, patience_s=5.0) as running:
        yield running


def test_clients_of_one_process_that_ask_at_once_price_a_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, second = [], threading.Event()
    price = accounting.epsilon_by_round

    def counted(*args: Any, **options: Any) -> tuple[float, ...]:
        calls.append(args)
        if len(calls) > 1:
            second.set()
        second.wait(0.3)  # long enough for another thread to come in, if one may
        return price(*args, **options)

    monkeypatch.setattr(accounting, "epsilon_by_round", counted)
    plan = central(noise_multiplier=1.51)
    with ThreadPoolExecutor(4) as pool:
        priced = list(pool.map(lambda _number: terms(plan).epsilon_by_round, range(4)))
    assert len(calls) == 1
    assert set(priced) == {terms(plan).epsilon_by_round}


def test_rounds_are_priced_and_not_local_steps() -> None:
    run = GaussianRun(noise_multiplier=1.5, sampling_rate=1.0, steps=2, relation=Relation.ZERO_OUT)
    wanted = tuple(epsilon_cost(one) for one in epsilon_by_round(run, rounds=2, delta=1e-5))
    more_steps = central()
    more_steps["training"]["local_steps"] = 50
    assert terms(central()).epsilon_by_round == terms(more_steps).epsilon_by_round == wanted


def test_the_sampling_of_examples_buys_nothing_under_central() -> None:
    rare = central(examples={"kind": "poisson", "rate": 1e-3})
    assert terms(rare).epsilon == terms(central()).epsilon


def test_a_claim_under_the_computed_price_is_refused() -> None:
    with pytest.raises(ClientError) as refused:
        terms(central(epsilon=1.0))
    assert refused.value.code == "noise_too_small"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"unit": "example"}, "plan_unsupported"),
        ({"unit": "person"}, "plan_unsupported"),
        ({"relation": "add_remove"}, "relation_refused"),
        ({"noise_multiplier": None}, "plan_incomplete"),
        ({"adaptive_clip": ADAPTIVE | {"bit_noise": 0.75}}, "plan_unsupported"),
    ],
)
def test_a_central_plan_that_does_not_hold_is_refused(changed: dict[str, Any], code: str) -> None:
    with pytest.raises(ClientError) as refused:
        judge(read(central(**changed)), policy())
    assert refused.value.code == code


@pytest.mark.parametrize("units", [["example", "person", "client"], ["person", "client"]])
def test_zeroing_out_a_client_is_refused_where_the_ceiling_is_for_a_finer_unit(units: list[str]) -> None:
    with pytest.raises(ClientError) as refused:
        judge(read(central()), policy(units=units))
    assert refused.value.code == "relation_refused"
    judge(read(central(relation="replace_one")), policy(units=units))


def test_adaptive_clipping_costs_nothing_beyond_the_plans_noise() -> None:
    judge(read(central(adaptive_clip=ADAPTIVE)), policy())
    assert terms(central(adaptive_clip=ADAPTIVE)).epsilon == terms(central()).epsilon


def test_a_local_plan_whose_clip_would_move_is_refused() -> None:
    with pytest.raises(ClientError) as refused:
        judge(
            read(manifest(privacy={"adaptive_clip": ADAPTIVE})), policy(trusts=["local"], units=["example"])
        )
    assert refused.value.code == "plan_unsupported"


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "sizes"},
        {"clip_norm": 1.0},
        {"rule": "median"},
        {"rule": "krum", "faulty": 1},
        {"rule": "trimmed_mean", "mixing": "nearest_neighbours"},
    ],
)
def test_what_the_price_of_a_sum_does_not_cover_is_refused(change: dict[str, Any]) -> None:
    values = central()
    values["aggregation"] |= change
    with pytest.raises(ClientError) as refused:
        judge(read(values), policy())
    assert refused.value.code == "plan_unsupported"


def test_a_trimmed_sum_over_everyone_costs_what_the_sum_costs_and_over_a_drawn_cohort_is_refused() -> None:
    trimmed = {"rule": "trimmed_mean", "faulty": 1}
    over_everyone = central()
    over_everyone["aggregation"] |= trimmed
    judge(read(over_everyone), policy())
    assert terms(over_everyone).epsilon == terms(central()).epsilon
    over_drawn = drawn(noise_multiplier=1.1292)
    over_drawn["aggregation"] |= trimmed
    with pytest.raises(ClientError) as refused:
        judge(read(over_drawn), policy())
    assert refused.value.code == "plan_unsupported"


def test_a_capped_secret_cohort_is_priced_by_rate_cap_and_population() -> None:
    def cost(**cohort: Any) -> int:
        plan = drawn(noise_multiplier=1.0) | {"rounds": 2}
        plan["privacy"]["cohort"] = POISSON | {"cap": 18, "n_max": 40} | cohort
        spent: int = terms(plan).epsilon
        return spent

    run = GaussianRun(
        noise_multiplier=1.0,
        sampling_rate=0.25,
        steps=2,
        relation=Relation.ZERO_OUT,
        capped=accounting.CappedPoisson(population=40, cap=18),
    )
    assert cost() == math.ceil(accounting.epsilon_pld([run], delta=1e-5) * 10**9)
    with pytest.raises(ClientError) as refused:  # the same cap for a pool that grew costs 10
        cost(n_max=80)
    assert refused.value.code == "noise_too_small"


def test_a_secret_cohort_is_held_to_the_policy_by_its_mean() -> None:
    judge(read(drawn()), policy(smallest_cohort=50))  # 202 clients at rate .25
    with pytest.raises(ClientError) as refused:
        judge(read(drawn()), policy(smallest_cohort=51))
    assert refused.value.code == "cohort_too_small"


def test_the_whole_schedule_is_spent_once_the_run_is_joined(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "d")
    joined = ledger.commit(terms(central()), ceiling=Ceiling(epsilon=8 * 10**9, delta=10**13))
    assert ledger.book().epsilon_spent == joined.epsilon == joined.epsilon_by_round[-1]
    ledger.void("r")
    assert ledger.book().epsilon_spent == 0


def test_a_client_that_is_not_drawn_has_joined_and_waits(
    server: RecordingServer, profile: Profile, tmp_path: Path
) -> None:
    asked: list[str] = []

    def nobody_drawn(heard: Heard) -> Answer | None:
        path = heard.path.partition("?")[0]
        asked.append(path)
        if path.endswith("/manifest") and asked.count(path) == 1:
            return problem(404, "not_found")  # the run starts a little later
        if asked.count("/v1/assignments") == 3:
            server.run.state = "finished"
        return Answer(payload={"items": []}) if path == "/v1/assignments" else None

    server.script = nobody_drawn
    seat = seat_of(profile, run_id=server.run.run_id)
    with (tmp_path / "log").open("w", encoding="utf-8") as out:
        Service([seat], trainer=RandomTrainer(), watcher=LineWatcher(out)).run()
    seat.session.close()
    commitment = profile.ledger.book().commitments[server.run.run_id]
    assert (commitment.trust, commitment.unit, commitment.contributions) == ("central", "client", {})
    assert server.bodies() == []
    assert asked.count(f"/v1/runs/{server.run.run_id}/manifest") == 2


def seat_of(profile: Profile, *, run_id: str | None = None) -> Seat:
    identity = Identity(profile.config.client_id, profile.key())
    return Seat(profile, Session(profile.config.server, identity=identity, patience_s=5.0), run_id=run_id)


def test_joining_a_local_run_sets_nothing_aside_before_a_round_comes(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.manifest = manifest()
    assert join(profile, session, server.run.run_id)
    assert profile.ledger.book().commitments == {}


def test_a_central_round_is_sent_in_the_same_order_of_writes(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    stages: list[Stage] = []

    def look(heard: Heard) -> Answer | None:
        if heard.method == "PUT":
            known = profile.ledger.book().contribution(server.run.run_id, 1)
            assert known is not None
            stages.append(known.stage)
        return None

    server.script = look
    files = fetch(profile, session, list_assignments(session, wait_s=0)[0])
    train(profile, files, RandomTrainer(), on_step=lambda _done, _steps: None)
    submit(profile, session, files)
    assert stages == [Stage.SPENT]
    assert server.bodies() == [files.update_path.read_bytes()]


def test_no_file_meant_for_others_holds_the_digest_of_an_update_without_noise(
    server: RecordingServer, profile: Profile, session: Session
) -> None:
    server.run.account = {"id": str(uuid4()), "entries": 4, "unit": "client"}
    files = fetch(profile, session, list_assignments(session, wait_s=0)[0])
    digest = train(profile, files, RandomTrainer(), on_step=lambda _done, _steps: None).sha256
    submit(profile, session, files)
    server.run.open_again(adapter=adapter() + b" ")
    again = fetch(profile, session, list_assignments(session, wait_s=0)[0])
    with pytest.raises(ClientError) as refused:
        submit(profile, session, again)
    assert refused.value.evidence is not None
    for path in (Path(refused.value.evidence), files.folder / "declaration.json"):
        assert digest not in path.read_text(encoding="utf-8")
    assert not [heard for heard in server.heard if "DPFL-Declaration" in heard.headers]


def test_the_person_is_told_that_the_server_sees_the_update(
    server: RecordingServer, profile: Profile, tmp_path: Path
) -> None:
    seat = seat_of(profile)
    with (tmp_path / "log").open("w", encoding="utf-8") as out:
        Service([seat], trainer=RandomTrainer(), watcher=LineWatcher(out), once=True).run()
    seat.session.close()
    warning, sent = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert "the server sees this client's updates" in warning
    assert "for the whole run, noised by the server" in sent
    assert "the server adds the noise" in status_lines(profile)[-1]


# --- training ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


def ready(folder: Path) -> tuple[dict[str, Any], Any, Any, dict[str, torch.Tensor]]:
    values = manifest_of(folder, trust="central")
    values["privacy"] |= CENTRAL | {"clip_norm": 0.001, "examples": {"kind": "all"}}
    return values, *trained_part_of(values, folder)


def test_a_central_client_trains_without_clipping_and_noise(tiny: Path) -> None:
    values, part, cache, start = ready(tiny)
    first, second = (train_round(part, cache, start, manifest=values) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)  # all examples, no noise
    moved = torch.cat([tensor.reshape(-1) for tensor in first.values()])
    assert float(moved.norm()) > 10 * 0.001  # the plan's C is the server's business


def test_a_central_round_refuses_an_order_seed(tiny: Path) -> None:
    values, part, cache, start = ready(tiny)
    with pytest.raises(ClientError) as refused:
        train_round(part, cache, start, manifest=values, order_seed=1)
    assert refused.value.code == "seeded_sampling"


def test_a_training_that_diverges_is_sent_as_zeros_and_never_missing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.plan.LEARNING_RATES", (1e-8, 1e38))  # further than any plan may go
    values, part, cache, start = ready(tiny)
    values["training"] |= {"learning_rate": 1e38, "local_steps": 8}
    update = train_round(part, cache, start, manifest=values)
    assert set(update) == set(start)
    assert not any(bool(tensor.any()) for tensor in update.values())
