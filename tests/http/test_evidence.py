"""Evidence and the ladder over HTTP: who sees whose, and who may take a step by hand."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.identity.models import Client
from app.identity.roles import Role
from app.rounds import lifecycle, standing
from app.rounds.models import Evidence, Round, Standing
from app.rounds.states import Step
from tests.builders import build_client, build_round, build_run, clients_of, principal_of
from tests.http.accounts import Caller, add_caller, client_headers

REVERSAL = {"to": "observe", "reason": "its scanner was replaced"}
QUARANTINE = {"to": "quarantine", "reason": "its owner reported an intrusion"}


class Judged:
    """A round with evidence about both of its clients; the second was odd and is in quarantine."""

    def __init__(self, session: Session) -> None:
        self.session = session
        run = build_run(session)
        self.round: Round = build_round(session, run=run, updates=2)
        self.ids: list[UUID] = clients_of(session, run)
        for number, client_id in enumerate(self.ids):
            odd = number == 1
            session.add(
                Evidence(
                    round_id=self.round.id,
                    client_id=client_id,
                    finite=True,
                    norm=2.0,
                    clipped=odd,
                    norm_ratio=9.0 if odd else 1.0,
                    odd=["norm"] if odd else [],
                    weight=1.0,
                )
            )
        session.add(
            Standing(
                client_id=self.ids[1],
                round_id=self.round.id,
                odd=True,
                step=Step.QUARANTINE,
                suspicion=6.4,
                actor="worker",
            )
        )
        session.flush()

    def caller(self, role: Role) -> Caller:
        return add_caller(self.session, role, self.round.organisation_id)

    @property
    def evidence(self) -> str:
        return f"/v1/rounds/{self.round.id}/evidence"

    def standing(self, number: int = 1) -> str:
        return f"/v1/clients/{self.ids[number]}/standing"


@pytest.fixture
def judged(session: Session) -> Judged:
    return Judged(session)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.PRIVACY_OFFICER])
def test_evidence_is_for_operators_only(api: TestClient, judged: Judged, role: Role) -> None:
    headers = judged.caller(role).headers
    assert api.get(judged.evidence, headers=headers).status_code == 403
    assert api.get(judged.standing(), headers=headers).status_code == 403


def test_another_organisations_evidence_is_not_found(
    api: TestClient, session: Session, judged: Judged
) -> None:
    headers = add_caller(session, Role.COORDINATOR).headers
    assert api.get(judged.evidence, headers=headers).status_code == 404
    assert api.get(judged.standing(), headers=headers).status_code == 404


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.AUDITOR])
def test_operators_see_what_a_round_said_about_each_client(
    api: TestClient, judged: Judged, role: Role
) -> None:
    shown = api.get(judged.evidence, headers=judged.caller(role).headers).json()
    assert shown["detection"] == "each_update"
    assert [item["client_id"] for item in shown["items"]] == [str(one) for one in judged.ids]
    assert [item["comparison"]["odd"] for item in shown["items"]] == [[], ["norm"]]
    steps = api.get(judged.standing(), headers=judged.caller(role).headers).json()["items"]
    assert [(step["step"], step["odd"], step["suspicion"]) for step in steps] == [("quarantine", True, 6.4)]


def test_a_client_is_told_its_own_finite_and_norm_result_and_nothing_else(
    api: TestClient, session: Session, judged: Judged
) -> None:
    own = client_headers(api.app, principal_of(session.get_one(Client, judged.ids[1])))
    assert api.get(judged.evidence, headers=own).json()["items"] == [
        {"client_id": str(judged.ids[1]), "finite": True, "norm": 2.0, "clipped": True, "comparison": None}
    ]
    assert api.get(judged.standing(), headers=own).status_code == 403
    stranger = client_headers(api.app, principal_of(build_client(session)))
    assert api.get(judged.evidence, headers=stranger).status_code == 404


def test_under_central_the_answer_says_that_nothing_is_looked_at(
    api: TestClient, session: Session, judged: Judged
) -> None:
    run = build_run(session)
    row = lifecycle.plan(
        session,
        run_id=run.id,
        organisation_id=run.organisation_id,
        number=1,
        min_updates=0,
        max_updates=2,
        deadline=clock.now(),
        adapter_sha256="0" * 64,
        client_ids=clients_of(session, run),
        actor="test",
        clip_norm=1.0,
    )
    headers = add_caller(session).headers
    shown = api.get(f"/v1/rounds/{row.id}/evidence", headers=headers).json()
    assert (shown["detection"], shown["items"]) == ("none", [])


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.AUDITOR, Role.PRIVACY_OFFICER])
def test_only_an_administrator_takes_a_step_by_hand(api: TestClient, judged: Judged, role: Role) -> None:
    headers = judged.caller(role).headers
    for body in (REVERSAL, QUARANTINE):
        assert api.post(judged.standing(), json=body, headers=headers).status_code == 403


@pytest.mark.parametrize("body", [{"to": "observe"}, REVERSAL | {"reason": ""}, REVERSAL | {"to": "x"}])
def test_a_reversal_needs_a_step_and_a_reason(api: TestClient, judged: Judged, body: dict[str, str]) -> None:
    headers = add_caller(judged.session).headers
    assert api.post(judged.standing(), json=body, headers=headers).status_code == 422


@pytest.mark.parametrize("to", ["quarantine", "suspend"])
def test_a_client_in_quarantine_is_put_no_higher_and_not_there_again(
    api: TestClient, judged: Judged, to: str
) -> None:
    headers = add_caller(judged.session).headers
    answer = api.post(judged.standing(), json=REVERSAL | {"to": to}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_reverse")


@pytest.mark.parametrize("to", ["observe", "discount", "suspend"])
def test_a_client_of_whom_nothing_odd_was_found_is_put_on_no_step_but_quarantine(
    api: TestClient, judged: Judged, to: str
) -> None:
    headers = add_caller(judged.session).headers
    answer = api.post(judged.standing(0), json=REVERSAL | {"to": to}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_reverse")


def test_an_administrator_puts_a_client_in_quarantine_by_hand_and_takes_it_back(
    api: TestClient, judged: Judged
) -> None:
    admin = add_caller(judged.session)
    put = api.post(judged.standing(0), json=QUARANTINE, headers=admin.headers)
    assert (put.status_code, put.json()["step"], put.json()["odd"]) == (201, "quarantine", None)
    assert standing.unsuspected(judged.session, judged.ids[:1]) == []
    assert api.post(judged.standing(0), json=REVERSAL, headers=admin.headers).status_code == 201
    shown = api.get(judged.standing(0), headers=admin.headers).json()["items"]
    assert [(one["step"], one["reason"], one["actor"]) for one in shown] == [
        ("observe", REVERSAL["reason"], admin.principal.actor),
        ("quarantine", QUARANTINE["reason"], admin.principal.actor),
    ]
    assert standing.unsuspected(judged.session, judged.ids[:1]) == judged.ids[:1]


def test_a_reversal_is_kept_with_its_reason_beside_what_it_reverses(api: TestClient, judged: Judged) -> None:
    admin = add_caller(judged.session)
    made = api.post(judged.standing(), json=REVERSAL | {"to": "discount"}, headers=admin.headers)
    assert made.status_code == 201
    shown = api.get(judged.standing(), headers=admin.headers).json()["items"]
    assert [(one["step"], one["suspicion"], one["reason"]) for one in shown] == [
        ("discount", 0.0, REVERSAL["reason"]),
        ("quarantine", 6.4, None),
    ]
    assert shown[0]["actor"] == admin.principal.actor
