"""The life of a run: what starts, what it reserves, which rounds follow, and what ends it."""

from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.budget import ledger
from app.budget.queries import account_of_client, accounts_of_clients
from app.core.canonical import canonical_sha256
from app.core.errors import Conflict, IllegalTransition, Invalid, NotFound
from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.models import ClientState
from app.identity.roles import Principal, Role
from app.jobs.models import Job
from app.rounds import lifecycle
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState
from app.runs import queries, service
from app.runs.charges import RelationTooWeak, UnitTooFine, run_ref
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.states import RunState
from tests.builders import build_account, build_client, build_update, tiny_manifest
from tests.central import CENTRAL
from tests.federation import NOTHING, OPEN_PRIVACY, PRICE, Federation, publish


@pytest.fixture
def federation(session: Session, settings: Settings) -> Federation:
    return Federation(session, settings)


def test_a_run_with_a_suspended_client_is_refused(federation: Federation) -> None:
    federation.clients[1].state = ClientState.SUSPENDED
    federation.session.flush()
    with pytest.raises(service.ClientUnfit):
        federation.draft()


def test_a_private_run_with_a_client_without_an_account_is_refused(federation: Federation) -> None:
    poor = build_client(federation.session, federation.organisation)
    with pytest.raises(service.ClientUnfit):
        federation.draft(client_ids=[federation.clients[0].id, poor.id])


def test_another_organisations_client_does_not_exist_for_a_coordinator(federation: Federation) -> None:
    foreign = build_client(federation.session)
    with pytest.raises(NotFound):
        federation.draft(client_ids=[federation.clients[0].id, foreign.id])


def test_a_client_that_is_listed_twice_is_refused(federation: Federation) -> None:
    one = federation.clients[0].id
    with pytest.raises(Invalid):
        federation.draft(client_ids=[one, one])


def test_a_trust_mode_outside_the_policy_is_refused(federation: Federation) -> None:
    federation.settings = federation.settings.model_copy(update={"trusts": ("local",)})
    with pytest.raises(Invalid) as caught:
        federation.draft(privacy=OPEN_PRIVACY)
    assert caught.value.code == "trust_not_allowed"


def test_a_draft_cannot_be_started(federation: Federation) -> None:
    run = federation.draft()
    with pytest.raises(IllegalTransition):
        service.start(federation.session, federation.coordinator, run.id, region=None)


def test_asking_for_a_price_queues_one_job_for_this_version(federation: Federation) -> None:
    run = federation.draft()
    service.price(federation.session, federation.coordinator, run.id)
    jobs = federation.session.scalars(sa.select(Job).where(Job.kind == "price")).all()
    assert [job.payload for job in jobs] == [{"run_id": str(run.id), "version": 2}]
    facts = queries.pricing_facts(federation.session, run.id, 2)
    assert facts is not None
    assert facts.orders == ()
    assert queries.pricing_facts(federation.session, run.id, 1) is None
    with pytest.raises(IllegalTransition):
        service.price(federation.session, federation.coordinator, run.id)


def test_a_price_for_an_older_version_changes_nothing(federation: Federation) -> None:
    run = federation.draft()
    service.price(federation.session, federation.coordinator, run.id)
    assert not service.accept_price(
        federation.session, run.id, version=1, price=PRICE, start_adapter_sha256="a" * 64, actor="job"
    )
    assert not service.refuse(federation.session, run.id, version=1, code="c", reason="r", actor="job")
    assert federation.session.get_one(Run, run.id).state is RunState.PRICING


def test_the_manifest_can_be_changed_while_it_is_a_draft_only(federation: Federation) -> None:
    run = federation.draft()
    changed = Manifest.model_validate(tiny_manifest(rounds=1))
    service.update_manifest(
        federation.session, federation.coordinator, run.id, manifest=changed, settings=federation.settings
    )
    assert (run.manifest["rounds"], run.version) == (1, 2)
    service.price(federation.session, federation.coordinator, run.id)
    with pytest.raises(service.NotDraft):
        service.update_manifest(
            federation.session, federation.coordinator, run.id, manifest=changed, settings=federation.settings
        )


def test_a_price_over_an_accounts_rest_refuses_the_run_and_names_nobody(
    session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings, epsilon=3.0)
    run = federation.draft()
    service.price(session, federation.coordinator, run.id)
    service.accept_price(
        session, run.id, version=run.version, price=PRICE, start_adapter_sha256="a" * 64, actor="job"
    )
    session.refresh(run)
    assert (run.state, run.reason_code) == (RunState.REFUSED, "budget_exceeded")
    assert run.reason is not None
    assert not any(str(client.id) in run.reason or client.name in run.reason for client in federation.clients)


def test_starting_freezes_the_manifest_with_its_noise_and_hashes_it(federation: Federation) -> None:
    run = federation.running()
    assert run.manifest["privacy"]["noise_multiplier"] == 1.2345
    assert run.manifest_sha256 == canonical_sha256(run.manifest)
    for statement in (
        "UPDATE runs SET manifest = '{}'",
        "UPDATE runs SET manifest_sha256 = NULL",
        "UPDATE runs SET price = '{}'",
    ):
        with pytest.raises(DBAPIError), federation.session.begin_nested():
            federation.session.execute(sa.text(statement))


def test_a_plan_that_names_its_noise_alone_is_frozen_with_an_epsilon_that_covers_its_cost(
    federation: Federation,
) -> None:
    run = federation.running(privacy={"epsilon": None, "noise_multiplier": 1.2345})
    assert run.price is not None
    frozen = run.manifest["privacy"]["epsilon"]
    assert run.price["epsilon"] <= frozen <= run.price["epsilon"] + 1e-6


def test_starting_reserves_the_whole_schedule_for_every_client_and_opens_round_one(
    federation: Federation,
) -> None:
    run = federation.running()
    for client in federation.clients:
        account = account_of_client(federation.session, client.id)
        assert (account.reserved, account.delta_reserved, account.spent) == (3_900_000_000, 10**13, 0)
    (round_,) = rounds_of(federation.session, run.id)
    assert (round_.number, round_.state, round_.adapter_sha256) == (1, RoundState.OPEN, "a" * 64)
    assert run.state is RunState.RUNNING


def test_a_run_that_became_too_dear_is_refused_whole_with_nothing_reserved(federation: Federation) -> None:
    run = federation.priced()
    second = account_of_client(federation.session, max(client.id for client in federation.clients))
    ledger.reserve(
        federation.session,
        second.id,
        ref="run:other",
        amount=5 * 10**9,
        delta_amount=0,
        event={},
        actor="test",
    )
    started = service.start(federation.session, federation.coordinator, run.id, region=None)
    assert (started.state, started.reason_code) == (RunState.REFUSED, "budget_exceeded")
    first = account_of_client(federation.session, min(client.id for client in federation.clients))
    assert first.reserved == 0
    assert rounds_of(federation.session, run.id) == []


def test_a_second_run_is_refused_when_only_its_delta_does_not_fit_any_more(federation: Federation) -> None:
    federation.running()
    run = federation.draft()
    service.price(federation.session, federation.coordinator, run.id)
    service.accept_price(
        federation.session, run.id, version=run.version, price=PRICE, start_adapter_sha256="a" * 64, actor="j"
    )
    federation.session.refresh(run)
    assert run.state is RunState.REFUSED


def test_a_run_without_privacy_reserves_nothing(federation: Federation) -> None:
    run = federation.running(price=NOTHING, privacy=OPEN_PRIVACY)
    assert run.state is RunState.RUNNING
    assert account_of_client(federation.session, federation.clients[0].id).reserved == 0


def test_after_each_publication_the_next_round_starts_from_its_adapter_until_the_plan_is_done(
    federation: Federation,
) -> None:
    session = federation.session
    run = federation.running()
    publish(session, rounds_of(session, run.id)[0], candidate="b" * 64)
    service.after_publish(session, run.id, actor="job", region=None)
    service.after_publish(session, run.id, actor="job", region=None)
    first, second = rounds_of(session, run.id)
    assert (second.number, second.adapter_sha256, second.state) == (2, "b" * 64, RoundState.OPEN)
    assert first.state is RoundState.PUBLISHED
    publish(session, second, candidate="c" * 64)
    service.after_publish(session, run.id, actor="job", region=None)
    session.refresh(run)
    assert run.state is RunState.FINISHED
    assert run.finished_at is not None


def test_a_price_beyond_the_ledgers_integers_is_over_budget(federation: Federation) -> None:
    client = build_client(federation.session, federation.organisation)
    build_account(federation.session, client, order=8.0)
    federation.clients[0] = client
    run = federation.priced(price=PRICE | {"rdp": {"8.0": 1e11}})
    run = queries.lock_run(federation.session, run.id)
    assert (run.state, run.reason_code) == (RunState.REFUSED, "budget_exceeded")


def test_a_paused_run_opens_no_round_until_it_is_resumed(federation: Federation) -> None:
    session = federation.session
    run = federation.running()
    service.pause(session, federation.coordinator, run.id)
    publish(session, rounds_of(session, run.id)[0])
    service.after_publish(session, run.id, actor="job", region=None)
    assert len(rounds_of(session, run.id)) == 1
    service.resume(session, federation.coordinator, run.id, region=None)
    assert len(rounds_of(session, run.id)) == 2


def test_a_paused_run_whose_last_round_is_published_is_finished_without_a_reason(
    federation: Federation,
) -> None:
    session = federation.session
    run = federation.running(price=PRICE | {"epsilon_by_round": [3.9]}, rounds=1)
    service.pause(session, federation.coordinator, run.id, reason="over the weekend")
    publish(session, rounds_of(session, run.id)[0])
    service.after_publish(session, run.id, actor="job", region=None)
    run = queries.lock_run(session, run.id)
    assert (run.state, run.reason_code, run.reason) == (RunState.FINISHED, None, None)


def test_resuming_while_a_round_is_under_way_opens_no_second_one(federation: Federation) -> None:
    run = federation.running()
    service.pause(federation.session, federation.coordinator, run.id)
    service.resume(federation.session, federation.coordinator, run.id, region=None)
    assert len(rounds_of(federation.session, run.id)) == 1


def test_an_aborted_round_pauses_the_run_with_the_reason_and_uses_up_its_number(
    federation: Federation,
) -> None:
    session = federation.session
    run = federation.running()
    round_ = rounds_of(session, run.id)[0]
    lifecycle.abort(session, round_.id, code="deadline_passed", reason="too few", actor="job")
    service.after_abort(session, run.id, code="deadline_passed", reason="too few", actor="job")
    session.refresh(run)
    assert (run.state, run.reason_code, run.reason) == (RunState.PAUSED, "deadline_passed", "too few")
    service.resume(session, federation.coordinator, run.id, region=None)
    second = rounds_of(session, run.id)[1]
    assert (second.number, second.adapter_sha256) == (2, "a" * 64)
    lifecycle.abort(session, second.id, code="deadline_passed", reason="again", actor="job")
    service.after_abort(session, run.id, code="deadline_passed", reason="again", actor="job")
    service.resume(session, federation.coordinator, run.id, region=None)
    session.refresh(run)
    assert run.state is RunState.FINISHED


def test_stopping_ends_the_open_round_and_gives_nothing_back(federation: Federation) -> None:
    session = federation.session
    run = federation.running()
    service.stop(session, federation.coordinator, run.id, reason="enough")
    session.refresh(run)
    (round_,) = rounds_of(session, run.id)
    session.refresh(round_)
    assert (run.state, run.reason_code, round_.state, round_.abort_code) == (
        RunState.ABORTED,
        "stopped",
        RoundState.ABORTED,
        "run_stopped",
    )
    account = account_of_client(session, federation.clients[0].id)
    assert account.reserved == 3_900_000_000
    with pytest.raises(IllegalTransition):
        service.resume(session, federation.coordinator, run.id, region=None)


def test_another_organisations_run_is_not_found(federation: Federation) -> None:
    run = federation.running()
    stranger = Principal(id=new_id(), organisation_id=new_id(), role=Role.COORDINATOR)
    resume, start = partial(service.resume, region=None), partial(service.start, region=None)
    for act in (service.pause, resume, service.price, start):
        with pytest.raises(NotFound):
            act(federation.session, stranger, run.id)


def test_every_step_of_a_run_is_in_its_log_with_who_took_it(federation: Federation) -> None:
    run = federation.running()
    steps = [(step.src, step.dst) for step in queries.log_of(federation.session, run.id)]
    assert steps == [
        ("new", "draft"),
        ("draft", "pricing"),
        ("pricing", "priced"),
        ("priced", "running"),
    ]
    actors = [step.actor for step in queries.log_of(federation.session, run.id)]
    planner = federation.coordinator.actor
    assert actors == [planner, planner, "job", planner]


@pytest.mark.parametrize("state", ["draft", "pricing", "priced", "refused", "unheard-of"])
def test_a_raw_update_to_an_illegal_state_is_refused_by_the_database(
    federation: Federation, state: str
) -> None:
    run = federation.running()
    with pytest.raises(DBAPIError), federation.session.begin_nested():
        federation.session.execute(
            sa.text("UPDATE runs SET state = :state WHERE id = :id").bindparams(state=state, id=run.id)
        )


def test_an_open_round_is_an_assignment_of_its_clients_until_they_sent(federation: Federation) -> None:
    session = federation.session
    run = federation.running()
    client_id = federation.clients[0].id
    (found,) = queries.assignments_of(session, client_id)
    assert (found.run.id, found.round.number) == (run.id, 1)
    build_update(session, found.round, client_id)
    assert queries.assignments_of(session, client_id) == []
    assert len(queries.assignments_of(session, federation.clients[1].id)) == 1


def test_a_renyi_account_pays_the_divergence_at_its_own_order(session: Session, settings: Settings) -> None:
    federation = Federation(session, settings)
    client = build_client(session, federation.organisation)
    build_account(session, client, order=8.0)
    ids = [federation.clients[0].id, client.id]
    run = federation.priced(client_ids=ids)
    assert queries.pricing_facts(session, run.id, 1) is None
    service.start(session, federation.coordinator, run.id, region=None)
    account = account_of_client(session, client.id)
    assert (account.reserved, account.delta_reserved) == (1_250_000_000, 0)
    assert ledger.find(session, account.id, ledger.EntryKind.RESERVE, run_ref(run.id)) is not None


def test_a_run_without_a_price_at_an_accounts_order_is_not_started(
    session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings)
    client = build_client(session, federation.organisation)
    build_account(session, client, order=16.0)
    run = federation.draft(client_ids=[federation.clients[0].id, client.id])
    service.price(session, federation.coordinator, run.id)
    facts = queries.pricing_facts(session, run.id, run.version)
    assert facts is not None
    assert facts.orders == (16.0,)
    with pytest.raises(Conflict):
        service.accept_price(
            session, run.id, version=run.version, price=PRICE, start_adapter_sha256="a" * 64, actor="job"
        )


@pytest.mark.parametrize(("account", "fits"), [("example", True), ("person", False), ("client", False)])
def test_a_run_that_protects_less_than_an_account_stands_for_is_refused(
    federation: Federation, account: str, fits: bool
) -> None:
    client = build_client(federation.session, federation.organisation)
    build_account(federation.session, client, unit=account)
    if fits:
        federation.draft(client_ids=[federation.clients[0].id, client.id])
        return
    with pytest.raises(UnitTooFine) as refusal:
        federation.draft(client_ids=[federation.clients[0].id, client.id])
    assert refusal.value.members["unit"] == account


def by_client(federation: Federation, *, account: str, relation: str) -> Run:
    """A drafted run by client under `central`, of clients with accounts of this unit."""
    clients = [build_client(federation.session, federation.organisation) for _number in range(2)]
    for client in clients:
        build_account(federation.session, client, unit=account)
    privacy = CENTRAL | {"cohort": {"kind": "everyone"}, "relation": relation}
    return federation.draft(client_ids=[client.id for client in clients], privacy=privacy)


@pytest.mark.parametrize("account", ["example", "person", "client"])
def test_replacing_a_client_may_be_charged_to_an_account_of_any_unit(
    federation: Federation, account: str
) -> None:
    assert by_client(federation, account=account, relation="replace_one").state == RunState.DRAFT


@pytest.mark.parametrize("account", ["example", "person"])
def test_zeroing_out_a_client_is_not_charged_to_an_account_by_record_or_person(
    federation: Federation, account: str
) -> None:
    """It is no guarantee for them at its price: a record can move the clipped update by twice the norm."""
    with pytest.raises(RelationTooWeak) as refusal:
        by_client(federation, account=account, relation="zero_out")
    assert refusal.value.members["unit"] == account
    assert by_client(federation, account="client", relation="zero_out").state == RunState.DRAFT


def test_a_draft_is_not_changed_into_one_that_an_account_could_not_pay_for(federation: Federation) -> None:
    run = by_client(federation, account="example", relation="replace_one")
    weaker = run.manifest | {"privacy": run.manifest["privacy"] | {"relation": "zero_out"}}
    plan = Manifest.model_validate(weaker)
    with pytest.raises(RelationTooWeak):
        service.update_manifest(
            federation.session, federation.coordinator, run.id, manifest=plan, settings=federation.settings
        )


def test_an_older_draft_that_an_account_may_not_pay_for_any_more_reserves_nothing_at_its_start(
    federation: Federation,
) -> None:
    session = federation.session
    run = by_client(federation, account="example", relation="replace_one")
    run.manifest = run.manifest | {"privacy": run.manifest["privacy"] | {"relation": "zero_out"}}
    service.price(session, federation.coordinator, run.id)
    service.accept_price(
        session, run.id, version=run.version, price=PRICE, start_adapter_sha256="a" * 64, actor="job"
    )
    with pytest.raises(RelationTooWeak):
        service.start(session, federation.coordinator, run.id, region=None)
    assert queries.lock_run(session, run.id).state == RunState.PRICED
    accounts = accounts_of_clients(session, queries.client_ids_of(session, run.id))
    assert [account.reserved for account in accounts.values()] == [0, 0]
