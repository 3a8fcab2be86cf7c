"""A secret cohort leaves no trace: nothing that anybody else is shown depends on who takes part, or how many.

Not searched for by name alone (the run's clients are public) but compared: every answer, to every role, is
the same whoever was drawn and whatever they sent.
"""

from __future__ import annotations

import base64
import inspect
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from structlog.testing import CapturingLogger

from app.core.settings import Settings
from app.http import failures, middleware
from app.http.metrics import COHORT_OPERATIONS
from app.identity.roles import Role
from app.jobs.models import Job
from app.main import api_routes, build_app
from app.rounds import canaries as kept
from app.rounds import lifecycle
from app.rounds.models import Round, RoundCanaries
from app.rounds.states import RoundState
from app.runs.canaries import secret_of
from app.runs.reserving import spend_for_all
from app.updates import service as updates
from app.updates.models import Update
from client import receipts, serving, transparency
from client.serving import Seat, next_assignments
from client.session import Reply
from tests.central import CANARIES, CLIENTS, SEATED
from tests.cohort_walk import OUTSIDER, Walk, walking
from tests.contracts.test_client_wire import paths_in
from tests.http.accounts import VAULT

if TYPE_CHECKING:
    from client.profile import Profile
    from client.session import Session as ClientSession


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """Whatever the gateway logs of requests, instead of its terminal."""
    heard = CapturingLogger()
    for module in (failures, middleware):
        monkeypatch.setattr(module, "log", heard)
    return heard


@pytest.fixture
def walk(api: TestClient, session: Session, settings: Settings) -> Walk:
    return walking(api, session, settings, seal="quorum")


def test_every_answer_is_the_same_whoever_was_drawn(walk: Walk) -> None:
    before = walk.looked_at()
    assert len(before) > 100
    for cohort in ((), (0, 1, 2, 3, 4)):
        walk.draw(*cohort)
        assert walk.looked_at() == before


def test_every_answer_is_the_same_while_members_send(walk: Walk) -> None:
    walk.draw(0, 1, 2, 3)
    before = walk.looked_at()
    for members in ((0,), (1, 2)):
        for number in members:
            assert walk.put(number).status_code == 201
        now = walk.looked_at()
        assert {key: text for key, text in now.items() if "/updates/" not in key[1]} == before
        walk.require_no_trace(now)
    assert all(text.startswith("404") for (_, path), text in now.items() if "/updates/" in path)


def test_the_walk_would_find_a_cohort_that_is_not_secret(walk: Walk) -> None:
    walk.session.execute(sa.text("SET LOCAL session_replication_role = replica"))
    walk.session.execute(sa.update(Round).values(cohort_secret=False))
    walk.session.refresh(walk.round)
    before = walk.looked_at()
    assert walk.put(0).status_code == 201
    now = walk.looked_at()
    assert {key: text for key, text in now.items() if "/updates/" not in key[1]} != before


def test_the_last_member_seals_the_round_without_its_name(walk: Walk) -> None:
    for number in (0, 1):
        assert walk.put(number).status_code == 201
    walk.session.refresh(walk.round)
    assert walk.round.state is RoundState.SEALED
    shown = walk.looked_at()
    walk.require_no_trace(shown)
    log = shown["admin", f"/v1/rounds/{walk.round.id}/log"]
    assert '"actor":"cohort"' in log
    assert not any(str(client_id) in log for client_id in walk.client_ids)


def test_a_round_that_closes_at_its_deadline_shows_nothing_when_everybody_has_sent(
    api: TestClient, session: Session, settings: Settings
) -> None:
    walk = walking(api, session, settings, seal=None)
    before = walk.looked_at()
    for number in (0, 1):
        assert walk.put(number).status_code == 201
    walk.session.refresh(walk.round)
    assert walk.round.state is RoundState.OPEN
    now = walk.looked_at()
    assert {key: text for key, text in now.items() if "/updates/" not in key[1]} == before
    walk.require_no_trace(now)


def test_nothing_shows_which_canaries_are_drawn_how_they_score_or_what_their_coins_are(
    api: TestClient, session: Session, settings: Settings, logged: CapturingLogger
) -> None:
    """Before the run is over answers are the same whatever was drawn and scored; none has the secret."""
    walk = walking(api, session, settings, seal="quorum", **SEATED)
    secret = secret_of(VAULT, walk.run.id)
    assert walk.run.manifest["privacy"]["audit"]["commitment"] is not None

    def counted() -> list[str]:
        lines = api.get("/metrics", headers=walk.staff[Role.ADMIN].headers).text.splitlines()
        return [line for line in lines if "get_metrics" not in line]

    def exchange(drawn: list[int]) -> None:
        session.execute(sa.delete(RoundCanaries))
        session.expire_all()
        kept.keep_draw(session, walk.round.id, drawn)
        kept.keep_scores(session, VAULT, walk.round.id, bytes(8 * CANARIES))

    before = walk.looked_at()
    counted()
    metrics = counted()
    exchange(list(range(CANARIES)))
    assert counted() == metrics
    for drawn in ([], [3, 8]):
        exchange(drawn)
        assert walk.looked_at() == before
    for shown in [*before.values(), *metrics, repr(logged.calls)]:
        for form in (
            secret.hex(),
            base64.b64encode(secret).decode(),
            base64.urlsafe_b64encode(secret).decode(),
        ):
            assert form not in shown


def test_a_member_sees_itself_and_nobody_else(walk: Walk) -> None:
    assert walk.put(0).status_code == 201
    own = f"/v1/rounds/{walk.round.id}/updates/{walk.sent[0][0]}"
    assert walk.api.get(own, headers=walk.as_client(0)).status_code == 200
    for number in (1, OUTSIDER):
        assert walk.api.get(own, headers=walk.as_client(number)).status_code == 404
    for headers in (caller.headers for caller in walk.staff.values()):
        assert walk.api.get(own, headers=headers).status_code in {403, 404}
    shown = walk.api.get(f"/v1/rounds/{walk.round.id}", headers=walk.as_client(1)).json()
    assert shown["updates"] is None


def test_a_client_that_was_not_drawn_can_send_nothing(walk: Walk) -> None:
    assert walk.put(OUTSIDER).status_code == 404
    assert walk.session.scalar(sa.select(sa.func.count()).select_from(Update)) == 0


def test_sending_spends_nothing_and_a_round_spends_the_same_on_every_account(walk: Walk) -> None:
    receipt = walk.put(0).json()
    assert receipt["account"]["amounts"]["spent"] == 0
    spend_for_all(walk.session, walk.run, walk.round, actor="worker")
    admin = walk.staff[Role.ADMIN].headers
    items = walk.api.get("/v1/budgets", headers=admin).json()["items"]
    assert len(items) == CLIENTS
    assert len({str((item["amounts"], item["delta_amounts"], item["entries"])) for item in items}) == 1
    for item in items:
        entries = walk.api.get(f"/v1/budgets/{item['id']}/entries", headers=admin).json()["items"]
        assert [entry["actor"] for entry in entries][-1] == "worker"


def test_metrics_and_logs_are_the_same_whether_members_send_or_not(
    walk: Walk, logged: CapturingLogger
) -> None:
    def metrics() -> list[str]:
        lines = walk.api.get("/metrics", headers=walk.staff[Role.ADMIN].headers).text.splitlines()
        return [line for line in lines if "get_metrics" not in line]

    metrics()
    before = metrics()
    assert walk.put(0).status_code == 201
    headers = walk.as_client(1)
    walk.api.get("/v1/assignments", headers=headers)
    walk.api.get(f"/v1/rounds/{walk.round.id}/adapter", headers=headers)
    walk.api.get(f"/v1/runs/{walk.run.id}/manifest", headers=headers)
    assert metrics() == before
    assert logged.calls == []
    walk.api.get("/v1/rounds", headers=walk.staff[Role.ADMIN].headers)
    assert [call.args for call in logged.calls] == [("request",)]


class Impatient(Exception):
    """Ends a client's loop after a few turns."""


class Asking:
    """A client's session that asks the gateway itself, and never waits for an answer."""

    def __init__(self, walk: Walk, number: int, *, turns: int) -> None:
        self._walk, self._number, self._turns = walk, number, turns

    def get(self, path: str, *, query: dict[str, str] | None = None, wait_s: float = 0.0) -> Reply:
        if path == "/v1/assignments":
            self._turns -= 1
            if self._turns < 0:
                raise Impatient
        asked = {name: value for name, value in (query or {}).items() if name != "wait"}
        headers = self._walk.as_client(self._number)
        answer = self._walk.api.get(path, headers=headers, params=asked | {"wait": "0"})
        assert answer.status_code == 200, answer.text
        return Reply(answer.status_code, dict(answer.headers), answer.content)


def test_a_client_that_waits_is_as_unseen_as_one_that_was_drawn(
    walk: Walk, logged: CapturingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever trains does not ask meanwhile: a count of those who ask is a count of the others."""
    monkeypatch.setattr(serving, "_LEAST_TURN_S", 0.0)

    def counted() -> list[str]:
        lines = walk.api.get("/metrics", headers=walk.staff[Role.ADMIN].headers).text.splitlines()
        return [line for line in lines if "get_metrics" not in line]

    def served(number: int) -> None:
        seat = Seat(
            profile=cast("Profile", None),
            session=cast("ClientSession", Asking(walk, number, turns=3)),
            run_id=str(walk.run.id),
            joined=str(walk.run.id),
        )
        next_assignments(seat)

    counted()
    before = counted()
    with pytest.raises(Impatient):
        served(OUTSIDER)
    served(0)
    assert counted() == before
    assert logged.calls == []


def test_a_member_that_follows_the_audit_log_is_not_counted(walk: Walk, logged: CapturingLogger) -> None:
    """It does so before each round that it fetches: a count of these would be one of members."""

    def counted() -> list[str]:
        lines = walk.api.get("/metrics", headers=walk.staff[Role.ADMIN].headers).text.splitlines()
        return [line for line in lines if "get_metrics" not in line]

    counted()
    before = counted()
    asked = {path for room in (transparency, receipts) for path in paths_in(inspect.getsource(room))}
    assert len(asked) == 4
    for path in sorted(asked):
        walk.api.get(path.replace("{}", str(uuid4())), headers=walk.as_client(0))
    assert counted() == before
    assert logged.calls == []


@pytest.mark.parametrize("fault", [RuntimeError("disk"), OperationalError("x", {}, Exception("gone"))])
def test_the_failures_of_members_are_told_once_and_without_a_name(
    walk: Walk, fault: Exception, logged: CapturingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise fault

    walk.api = TestClient(walk.api.app, raise_server_exceptions=False)
    monkeypatch.setattr(updates, "announce", fail)
    statuses = [walk.put(number).status_code for number in (0, 1)]
    assert set(statuses) <= {500, 503}
    (only,) = logged.calls
    assert only.kwargs["error"] == type(fault).__name__
    written = repr(only)
    for text in (str(walk.round.id), "/v1/", *(update_id for update_id, _digest in walk.sent)):
        assert text not in written


def test_what_a_cohort_asks_for_is_counted_where_no_run_can_have_a_secret_one(settings: Settings) -> None:
    app = build_app(settings.model_copy(update={"trusts": ("local",)}))
    assert app.state.metrics.hidden == frozenset()
    names = {route.original_route.name for route in api_routes(app)}
    assert names >= COHORT_OPERATIONS


def test_an_update_that_comes_too_late_leaves_no_job_of_its_own(walk: Walk) -> None:
    lifecycle.seal(walk.session, walk.round.id, actor="test", vault=VAULT)
    assert walk.put(0).status_code == 409
    lifecycle.purge_late(walk.session, walk.round.id, UUID(walk.sent[0][0]))
    assert walk.session.scalars(sa.select(Job.id).where(Job.kind == "purge")).all() == []
    lifecycle.abort(walk.session, walk.round.id, code="x", reason="x", actor="test")
    keys = walk.session.scalars(sa.select(Job.key).where(Job.kind == "purge").order_by(Job.key)).all()
    assert keys == [str(walk.round.id), f"{walk.round.id}:again"]


def test_sealing_and_aborting_by_hand_say_no_count(walk: Walk) -> None:
    assert walk.put(0).status_code == 201
    coordinator = walk.staff[Role.COORDINATOR].headers
    sealed = walk.api.post(f"/v1/rounds/{walk.round.id}/seal", headers=coordinator)
    assert (sealed.status_code, sealed.json()["updates"]) == (202, None)
    aborted = walk.api.post(f"/v1/rounds/{walk.round.id}/abort", json={"reason": "x"}, headers=coordinator)
    assert (aborted.status_code, aborted.json()["updates"]) == (202, None)
