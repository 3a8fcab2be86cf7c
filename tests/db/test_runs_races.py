"""Runs under true concurrency: one start of many, one of two runs that do not both fit, one sealed round."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from app.budget.chain import verify_chain
from app.budget.queries import account_of_client
from app.core.db import Database
from app.core.errors import IllegalTransition
from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.roles import Principal, Role
from app.jobs.models import Job
from app.policies.rules import PeriodCeiling, Rules
from app.policies.service import set_rules
from app.rounds import lifecycle
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs import service
from app.runs.states import RunState
from app.updates import service as updates
from app.updates.service import Sent
from tests.builders import build_update
from tests.database import settings_for
from tests.federation import Federation, sha256_of, update_file
from tests.http.accounts import VAULT


def settings_of(database_url: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, tmp_path / "blobs")


def test_of_8_racing_starts_one_starts_and_reserves_once(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    with database.run_tx("set up") as session:
        federation = Federation(session, settings_of(database_url, tmp_path))
        run_id, coordinator = federation.priced().id, federation.coordinator
        client_id = federation.clients[0].id

    def start(_number: int) -> bool:
        try:
            with database.run_tx("start") as session:
                service.start(session, coordinator, run_id, region=None)
        except IllegalTransition:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(8))) == 1
    with database.run_tx("check") as session:
        assert account_of_client(session, client_id).reserved == 3_900_000_000
        assert session.scalar(sa.select(sa.func.count()).select_from(Round)) == 1


def test_of_two_runs_that_do_not_fit_together_one_starts_and_the_other_is_refused(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    with database.run_tx("set up") as session:
        federation = Federation(session, settings_of(database_url, tmp_path))
        runs = [federation.priced().id, federation.priced().id]
        coordinator, clients = federation.coordinator, [client.id for client in federation.clients]

    def start(run_id: UUID) -> RunState:
        with database.run_tx("start") as session:
            return service.start(session, coordinator, run_id, region=None).state

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(start, runs)) == [RunState.REFUSED, RunState.RUNNING]
    with database.run_tx("check") as session:
        for client_id in clients:
            account = account_of_client(session, client_id)
            assert account.reserved == 3_900_000_000
            assert verify_chain(session, account.id).holds


def test_of_two_runs_of_which_a_data_rule_allows_one_in_a_period_one_starts(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """Both fit the accounts; whoever is judged second finds what the first has reserved."""
    with database.run_tx("set up") as session:
        federation = Federation(session, settings_of(database_url, tmp_path), delta=2e-5)
        runs = [federation.priced().id, federation.priced().id]
        owner, coordinator = federation.organisation.id, federation.coordinator
        steward = Principal(id=new_id(), organisation_id=owner, role=Role.DATA_STEWARD)
        rules = Rules(epsilon_per_period=PeriodCeiling(epsilon=5.0, days=30))
        set_rules(session, steward, owner, rules=rules)

    with ThreadPoolExecutor(1) as pool:
        with database.run_tx("start") as session:
            assert service.start(session, coordinator, runs[0], region=None).state is RunState.RUNNING
            other = pool.submit(_state_after_start, database, coordinator, runs[1])
            _until_somebody_waits(database)
        assert other.result(timeout=30) == (RunState.REFUSED, "data_rule_denied")


def _state_after_start(
    database: Database, coordinator: Principal, run_id: UUID
) -> tuple[RunState, str | None]:
    with database.run_tx("start") as session:
        run = service.start(session, coordinator, run_id, region=None)
        return run.state, run.reason_code


def test_a_round_that_is_sealed_while_its_run_is_stopped_is_finished(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    with database.run_tx("set up") as session:
        federation = Federation(session, settings_of(database_url, tmp_path))
        run = federation.running()
        round_id = federation.round_of(run).id
        for client in federation.clients:
            build_update(session, federation.round_of(run), client.id)

    def stop() -> RunState:
        with database.run_tx("stop") as session:
            return service.stop(session, federation.coordinator, run.id, reason="r").state

    with ThreadPoolExecutor(1) as pool:
        with database.run_tx("seal") as session:
            lifecycle.seal(session, round_id, actor="test", vault=VAULT)
            stopping = pool.submit(stop)
            _until_somebody_waits(database)
        assert stopping.result(timeout=30) is RunState.ABORTED
    with database.run_tx("check") as session:
        assert session.get_one(Round, round_id).state is RoundState.SEALED


def _until_somebody_waits(database: Database) -> None:
    """Return once another transaction waits for a lock."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with database.engine.connect() as connection:
        while not connection.scalar(waiting):
            connection.rollback()  # a snapshot of activity lasts as long as its transaction


def test_the_same_update_from_8_connections_is_one_update_charged_once_and_seals_once(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    with database.run_tx("set up") as session:
        federation = Federation(session, settings_of(database_url, tmp_path))
        run = federation.running()
        round_id = federation.round_of(run).id
        principals = [federation.principal(0), federation.principal(1)]
    body = update_file(run.manifest)
    sent = [
        Sent(round_id=round_id, update_id=new_id(), sha256=sha256_of(body), size_bytes=len(body))
        for _client in principals
    ]

    def send(number: int) -> UUID:
        principal: Principal = principals[number % 2]
        one = sent[number % 2]
        with database.run_tx("announce") as session:
            updates.announce(session, principal, one)
        with database.run_tx("accept") as session:
            return updates.accept(session, principal, one, vault=VAULT).id

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(16))) == {one.update_id for one in sent}
    with database.run_tx("check") as session:
        assert session.get_one(Round, round_id).state is RoundState.SEALED
        jobs = session.scalars(sa.select(Job).where(Job.kind == "aggregate")).all()
        assert len(jobs) == 1
        for principal in principals:
            assert account_of_client(session, principal.id).spent == 2_500_000_000
