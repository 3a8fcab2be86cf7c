"""Security events: what makes one, who sees it, the live feed, and what was made of it."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.core.errors import DomainError
from app.core.ids import new_id
from app.core.settings import Settings
from app.identity import enrolments
from app.identity.models import Client
from app.identity.roles import Role
from app.rounds import standing
from app.rounds.models import Assignment, Round
from app.rounds.standing import Stand
from app.rounds.states import Step
from app.runs.models import Run
from app.security import events
from app.security.kinds import KINDS, Advice
from app.security.models import SecurityEvent, Severity
from app.updates.suspicions import note_copies, note_haste
from tests.builders import build_round, build_run, build_update, clients_of, tiny_manifest
from tests.contracts.sources import ROOT
from tests.federation import Federation, sha256_of
from tests.http.accounts import VAULT, Applicant, add_caller, enrol, token_form
from tests.http.test_updates import Seat


def noted(session: Session, kind: str) -> list[SecurityEvent]:
    rows = sa.select(SecurityEvent).where(SecurityEvent.kind == kind).order_by(SecurityEvent.version)
    return list(session.scalars(rows.execution_options(populate_existing=True)))


def note(session: Session, subject: str = "client:1", **changes: object) -> SecurityEvent:
    told: dict[str, object] = {"kind": "tried", "organisation_id": None, "severity": Severity.NOTICE}
    event_id = events.note(session, subject=subject, evidence={"number": 1}, **(told | changes))  # type: ignore[arg-type]
    return session.get_one(SecurityEvent, event_id, populate_existing=True)


@pytest.fixture
def in_the_open(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A gateway whose federation allows no secret cohorts."""
    monkeypatch.setattr(api.app.state.metrics, "hidden", frozenset())  # type: ignore[attr-defined]
    return api


def test_where_cohorts_may_be_secret_no_call_of_a_client_in_its_round_is_an_event(
    api: TestClient, session: Session
) -> None:
    applicant, client_id = enrol(api, add_caller(session))
    form = token_form(applicant.assertion(client_id))
    assert api.post("/v1/tokens", data=form).status_code == 200
    assert api.post("/v1/tokens", data=form).json()["code"] == "assertion_replayed"
    assert noted(session, "assertion_replayed") == []


def test_a_replayed_assertion_is_an_event_although_it_is_refused(
    in_the_open: TestClient, session: Session
) -> None:
    api = in_the_open
    applicant, client_id = enrol(api, add_caller(session))
    form = token_form(applicant.assertion(client_id))
    assert api.post("/v1/tokens", data=form).status_code == 200
    for _again in range(3):
        assert api.post("/v1/tokens", data=form).json()["code"] == "assertion_replayed"
    (event,) = noted(session, "assertion_replayed")
    assert (event.count, event.severity, event.organisation_id) == (3, Severity.WARNING, None)
    assert event.subject.startswith("address:")
    assert event.evidence == {"operation": "create_token", "status": 401}


def test_more_of_the_same_within_an_hour_is_counted_and_opens_it_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = datetime(2026, 5, 4, 10, 59, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: begun)
    first = note(session)
    version = first.version
    events.resolve(session, first.id, actor="member:1", reason="looked at")
    assert note(session).id == first.id
    session.refresh(first)
    assert (first.count, first.resolved_at) == (2, None)
    assert first.version > version
    assert note(session, subject="client:2").id != first.id
    monkeypatch.setattr(clock, "now", lambda: begun + timedelta(minutes=2))
    assert note(session).id != first.id


def test_an_event_is_forgotten_when_nothing_more_of_it_was_seen_for_long(session: Session) -> None:
    old, recent = note(session), note(session, subject="client:2")
    old.last_at = clock.now() - timedelta(days=31)
    session.flush()
    events.forget(session, older_than=timedelta(days=30))
    assert [one.id for one in noted(session, "tried")] == [recent.id]


def test_an_update_that_was_sent_before_is_an_event(
    api: TestClient, session: Session, settings: Settings
) -> None:
    seat = Seat(api, Federation(session, settings))
    assert seat.put().status_code == 201
    assert noted(session, "update_copied") == []
    first = seat.row()
    assert first is not None
    assert seat.put(number=1, update_id=new_id()).status_code == 201
    (event,) = noted(session, "update_copied")
    assert event.subject == f"client:{seat.federation.clients[1].id}"
    assert event.evidence["earlier_update_id"] == str(first.id)


LONG = {"local_steps": 10_000}
"""One second of training at the least."""


def asked_at(session: Session, round_: Round) -> datetime | None:
    rows = sa.select(Assignment.adapter_at).where(Assignment.round_id == round_.id)
    return session.scalar(rows.order_by(Assignment.adapter_at.nulls_last()).limit(1))


def ask_at(session: Session, moment: datetime) -> None:
    session.execute(sa.update(Assignment).values(adapter_at=moment))


def test_when_a_client_asks_for_its_adapter_is_kept_once_and_never_of_a_secret_cohort(
    api: TestClient, session: Session, settings: Settings
) -> None:
    seat = Seat(api, Federation(session, settings))
    secret = build_round(session, run=seat.run, number=2, cohort_secret=True, clip_norm=1.0)
    known = seat.headers() | {"If-None-Match": "*"}
    kept = []
    for row in (seat.round, seat.round, secret):
        assert api.get(f"/v1/rounds/{row.id}/adapter", headers=known).status_code == 304
        kept.append(asked_at(session, seat.round))
    assert kept[0] is not None
    assert kept == [kept[0]] * 3
    assert asked_at(session, secret) is None


def test_an_update_of_a_client_that_never_asked_for_the_adapter_is_taken_and_is_an_event(
    api: TestClient, session: Session, settings: Settings
) -> None:
    seat = Seat(api, Federation(session, settings))
    assert seat.put().status_code == 201
    assert seat.put().status_code == 200
    (event,) = noted(session, "update_untrained")
    assert (event.subject, event.count) == (f"client:{seat.federation.clients[0].id}", 1)
    assert (event.evidence["round_id"], event.evidence["taken_s"]) == (str(seat.round.id), None)


def test_an_update_that_comes_sooner_than_it_can_be_trained_is_taken_and_is_an_event(
    api: TestClient, session: Session, settings: Settings
) -> None:
    seat = Seat(api, Federation(session, settings), training=LONG)
    ask_at(session, clock.now() + timedelta(hours=1))
    assert seat.put().status_code == 201
    (event,) = noted(session, "update_too_soon")
    told = event.evidence
    assert (told["local_steps"], told["least_s"], told["taken_s"]) == (10_000, 1.0, 0.0)
    assert event.score == 1.0
    assert noted(session, "update_untrained") == []


def test_an_update_that_had_time_enough_is_no_event(
    api: TestClient, session: Session, settings: Settings
) -> None:
    seat = Seat(api, Federation(session, settings), training=LONG)
    ask_at(session, clock.now() - timedelta(seconds=2))
    assert seat.put().status_code == 201
    assert noted(session, "update_too_soon") == noted(session, "update_untrained") == []


def test_of_a_secret_cohort_no_haste_is_noted_and_none_of_a_message_that_needs_no_training(
    session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings)
    row = build_run(session)
    update = build_update(session, build_round(session, run=row), clients_of(session, row)[0])

    def hurried(number: int, method: str, **values: object) -> int:
        numbered = {"run": row, "number": number} | values
        round_ = build_round(session, **numbered)  # type: ignore[arg-type]  # names are the builder's
        plan = Run(manifest=tiny_manifest(training=LONG, lora={"method": method}))
        note_haste(session, federation.principal(), update, trained_from=round_, run=plan)
        return len(noted(session, "update_untrained"))

    assert hurried(2, "ffa", cohort_secret=True, clip_norm=1.0) == 0
    assert (hurried(4, "fedask"), hurried(5, "fedask")) == (0, 1)


def test_which_clients_enrolled_from_one_network_is_kept_and_not_from_which(
    api: TestClient, session: Session
) -> None:
    admin, places = add_caller(session), []
    for address in ("192.0.2.7", "192.0.2.7", "2001:db8::1", "2001:db8::2", "192.0.2.8"):
        caller = TestClient(api.app, base_url="http://127.0.0.1:8000", client=(address, 4000))
        _applicant, client_id = enrol(caller, admin)
        places.append(session.get_one(Client, UUID(client_id)).enrolled_from)
    assert places[0] == places[1] == VAULT.fingerprint("enrolment-network", "192.0.2.7")
    assert places[2] == places[3]
    assert len(set(places)) == 3
    _applicant, client_id = enrol(api, admin)  # over a socket that has no address
    assert session.get_one(Client, UUID(client_id)).enrolled_from is None


def test_a_score_is_the_highest_that_was_seen(session: Session) -> None:
    event = note(session)
    assert (event.score, event.advice) == (0.5, Advice.WATCH)
    for score, expected in ((0.9, 0.9), (0.2, 0.9)):
        note(session, score=score)
        session.refresh(event)
        assert event.score == expected


def test_every_kind_that_the_product_notes_has_a_score_and_an_advice() -> None:
    """Refusals by their classes, the rest by the words that stand in the sources."""
    pending, found = [DomainError], set()
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        found |= {kind.code} if kind.is_suspicious else set()
    sources = "".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    told = re.findall(r"events\.note\(\s*session,\s*kind=([^\n]*),\n", sources)
    found |= {word for one in told for word in re.findall(r'(?<!f)"([a-z_]+)"', one)}
    found |= {f"client_at_{step}" for step in (Step.QUARANTINE, Step.SUSPEND)}
    assert found == set(KINDS)


@pytest.mark.parametrize(
    "hidden",
    [{"cohort_secret": True, "clip_norm": 1.0}, {"clip_norm": 1.0}],
    ids=["a secret cohort", "noised by the server"],
)
def test_bytes_of_a_round_that_keeps_its_cohort_are_compared_with_none(
    api: TestClient, session: Session, settings: Settings, hidden: dict[str, object]
) -> None:
    """Whoever can compute an update sends its bytes in a round in the open, and looks for the event."""
    seat = Seat(api, Federation(session, settings))
    earlier = build_round(session, **hidden)
    kept = build_update(session, earlier, seat.federation.clients[1].id, blob_sha256=sha256_of(seat.body))
    kept.organisation_id = seat.federation.organisation.id
    session.flush()
    assert seat.put().status_code == 201
    note_copies(session, seat.federation.principal(1), kept, round_=earlier)  # the same two, the other way
    assert noted(session, "update_copied") == []


def test_a_step_to_quarantine_is_an_event_and_one_to_discount_is_none(
    session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings)
    client_id = federation.clients[0].id
    for step, expected in ((Step.DISCOUNT, 0), (Step.QUARANTINE, 1)):
        stand, round_id = Stand(step, 3.0), build_round(session).id
        standing.step_after_round(session, client_id, round_id, odd=True, stand=stand, actor="worker")
        assert len(noted(session, "client_at_quarantine")) == expected


def test_many_clients_of_one_organisation_within_an_hour_are_an_event(
    api: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolments, "BURST", 2)
    admin = add_caller(session)
    for expected in (0, 0, 1):
        enrol(api, admin, Applicant())
        assert len(noted(session, "burst_registration")) == expected
    session.execute(sa.update(Client).values(created_at=clock.now() - timedelta(hours=2)))
    enrol(api, admin, Applicant())
    (event,) = noted(session, "burst_registration")
    assert event.count == 1


def test_who_sees_which_events(api: TestClient, session: Session) -> None:
    auditor, admin = add_caller(session, Role.AUDITOR), add_caller(session)
    own = note(session, organisation_id=auditor.organisation_id)
    note(session, subject="client:2", organisation_id=uuid4())
    note(session, subject="address:10.0.0.1")
    shown = api.get("/v1/security-events", headers=auditor.headers).json()["items"]
    assert [one["id"] for one in shown] == [str(own.id)]
    assert len(api.get("/v1/security-events", headers=admin.headers).json()["items"]) == 3
    assert api.get("/v1/security-events", headers=add_caller(session, Role.VIEWER).headers).status_code == 403
    path = f"/v1/security-events/{own.id}/resolve"
    assert api.post(path, json={"reason": "a test"}, headers=auditor.headers).status_code == 403
    assert api.post(path, json={"reason": ""}, headers=admin.headers).status_code == 422
    done = api.post(path, json={"reason": "a test"}, headers=admin.headers).json()
    assert (done["resolution"], done["resolved_by"]) == ("a test", admin.principal.actor)
    missing = f"/v1/security-events/{uuid4()}/resolve"
    assert api.post(missing, json={"reason": "a test"}, headers=admin.headers).status_code == 404


def test_the_feed_tells_what_changed_since_a_version(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    first, second = note(session), note(session, subject="client:2")
    feed = api.get("/v1/security-events/feed", headers=admin.headers).json()
    assert [one["id"] for one in feed["items"]] == [str(first.id), str(second.id)]
    assert feed["version"] == second.version
    since = {"since": feed["version"]}
    empty = api.get("/v1/security-events/feed", params=since, headers=admin.headers).json()
    assert empty == {"items": [], "version": feed["version"]}
    note(session)
    later = api.get("/v1/security-events/feed", params=since, headers=admin.headers).json()
    assert [(one["id"], one["count"]) for one in later["items"]] == [(str(first.id), 2)]
