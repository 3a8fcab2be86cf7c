"""The second factor, recovery codes, and what guessing costs."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.identity import attempts, passwords, sign_in
from app.identity.models import Attempts, RecoveryCode
from tests.http.accounts import VAULT, add_caller
from tests.http.members import PASSWORD, Person, add_person, bearer, refusal


@pytest.fixture
def person(api: TestClient, session: Session) -> Person:
    """A member with a second factor, whose device shows a fresh code by now."""
    person = add_person(session)
    headers = bearer(person.sign_in(api)["access_token"])
    with clock.shifted(timedelta(minutes=-5)):
        person.sign_in(api)  # keys and sessions are of before, too
    person.changes["recovery"] = person.get_second_factor(api, headers)
    return person


def later(steps: int = 2) -> timedelta:
    return timedelta(seconds=30 * steps)


def test_with_a_second_factor_the_password_alone_opens_nothing(api: TestClient, person: Person) -> None:
    assert refusal(api.post("/v1/sessions", json=person.body())) == (401, "second_factor_required")
    wrong = api.post("/v1/sessions", json=person.body(password="wrong horse", code="000000"))
    assert refusal(wrong) == (401, "sign_in_refused")


def test_a_code_is_taken_once(api: TestClient, person: Person) -> None:
    assert refusal(api.post("/v1/sessions", json=person.body(code=person.code()))) == (
        401,
        "second_factor_wrong",  # it confirmed the factor already
    )
    with clock.shifted(later()):
        code = person.code()
        person.sign_in(api, code=code)
        again = api.post("/v1/sessions", json=person.body(code=code))
        assert refusal(again) == (401, "second_factor_wrong")
        earlier = api.post("/v1/sessions", json=person.body(code=person.code(steps=-1)))
        assert refusal(earlier) == (401, "second_factor_wrong")


@pytest.mark.parametrize(("steps", "status"), [(-2, 401), (-1, 201), (0, 201), (1, 201), (2, 401)])
def test_a_code_of_the_next_step_to_either_side_is_taken_and_no_other(
    api: TestClient, person: Person, steps: int, status: int
) -> None:
    with clock.shifted(later(10)):
        answer = api.post("/v1/sessions", json=person.body(code=person.code(steps=steps)))
        assert answer.status_code == status


def test_a_recovery_code_stands_in_once(api: TestClient, session: Session, person: Person) -> None:
    codes: list[str] = person.changes["recovery"]
    assert len(set(codes)) == 10
    kept = session.scalars(sa.select(RecoveryCode.code_hmac)).all()
    assert all(len(hmac) == 32 for hmac in kept)
    person.sign_in(api, recovery_code=codes[0].lower())
    again = api.post("/v1/sessions", json=person.body(recovery_code=codes[0]))
    assert refusal(again) == (401, "second_factor_wrong")
    person.sign_in(api, recovery_code=codes[1])


def test_a_second_factor_is_replaced_only_with_the_present_one(api: TestClient, person: Person) -> None:
    with clock.shifted(later()):
        headers = bearer(person.sign_in(api, code=person.code())["access_token"])
        for body, code in (
            ({"password": "wrong horse"}, "sign_in_refused"),
            ({"password": PASSWORD}, "second_factor_required"),
            ({"password": PASSWORD, "code": "000000"}, "second_factor_wrong"),
        ):
            answer = api.post("/v1/account/second-factor", json=body, headers=headers)
            assert refusal(answer) == (401, code)
    with clock.shifted(later(4)):
        body = {"password": PASSWORD, "code": person.code()}
        assert api.post("/v1/account/second-factor", json=body, headers=headers).status_code == 200
    with clock.shifted(later(8)):
        person.sign_in(api, code=person.code())  # the former one counts until the new one is confirmed


def test_confirming_a_second_factor_ends_the_other_sessions(api: TestClient, session: Session) -> None:
    person = add_person(session)
    here, there = person.sign_in(api), person.sign_in(api)
    person.get_second_factor(api, bearer(here["access_token"]))
    api.app.state.authenticator.suspensions.announce()  # type: ignore[attr-defined]  # as the hub does
    assert api.get("/v1/account", headers=bearer(there["access_token"])).status_code == 401
    assert api.get("/v1/account", headers=bearer(here["access_token"])).status_code == 200


def test_nothing_is_confirmed_that_was_not_offered(api: TestClient, session: Session) -> None:
    headers = bearer(add_person(session).sign_in(api)["access_token"])
    answer = api.post("/v1/account/second-factor/confirm", json={"code": "000000"}, headers=headers)
    assert refusal(answer) == (409, "nothing_offered")


def test_a_member_without_a_password_has_nothing_to_confirm_with(api: TestClient, session: Session) -> None:
    caller = add_caller(session)
    for path, body in (
        ("/v1/account/second-factor", {"password": PASSWORD}),
        ("/v1/account/password", {"password": PASSWORD, "new_password": "nine quiet lighthouses"}),
    ):
        assert refusal(api.post(path, json=body, headers=caller.headers)) == (409, "no_password")


@pytest.mark.parametrize("known", [True, False])
def test_after_five_failures_each_attempt_waits_twice_as_long_whoever_is_asked_for(
    api: TestClient, session: Session, known: bool
) -> None:
    person = add_person(session)
    email = person.email if known else "nobody@riverside.example"
    seen = [api.post("/v1/sessions", json={"email": email, "password": "wrong horse"}) for _index in range(6)]
    assert [refusal(answer) for answer in seen] == [(401, "sign_in_refused")] * 5 + [
        (429, "too_many_attempts")
    ]
    assert seen[-1].headers["retry-after"] == "1"
    waits = []
    passed = 0
    for _round in range(3):
        answer = api.post("/v1/sessions", json={"email": email, "password": "wrong horse"})
        waits.append(int(answer.headers["retry-after"]))
        passed += waits[-1] + 1
        with clock.shifted(timedelta(seconds=passed)):
            answer = api.post("/v1/sessions", json={"email": email, "password": "wrong horse"})
            assert refusal(answer) == (401, "sign_in_refused")
        with clock.shifted(timedelta(seconds=passed + 0.5)):
            answer = api.post("/v1/sessions", json={"email": email, "password": "wrong horse"})
            assert answer.status_code == 429
            waits[-1] = int(answer.headers["retry-after"])
        passed += waits[-1]
    assert waits == [2, 4, 8]


def test_who_waits_may_not_even_send_the_right_password(api: TestClient, session: Session) -> None:
    person = add_person(session)
    for _index in range(5):
        api.post("/v1/sessions", json=person.body(password="wrong horse"))
    assert refusal(api.post("/v1/sessions", json=person.body())) == (429, "too_many_attempts")
    with clock.shifted(timedelta(seconds=3)):
        person.sign_in(api)
        api.post("/v1/sessions", json=person.body(password="wrong horse"))
        person.sign_in(api)  # a success forgets the failures


def test_failures_from_elsewhere_lock_nobody_out(api: TestClient, session: Session) -> None:
    person = add_person(session)
    thief = TestClient(api.app, base_url="http://127.0.0.1:8000", client=("203.0.113.7", 1))
    for _index in range(8):
        thief.post("/v1/sessions", json=person.body(password="wrong horse"))
    assert thief.post("/v1/sessions", json=person.body()).status_code == 429
    person.sign_in(api)


def test_many_addresses_tried_from_one_place_slow_that_place_down(session: Session) -> None:
    caught = None
    for number in range(60):
        try:
            attempts.count(session, VAULT, attempts.of_password(f"{number}@x.example", "203.0.113.7"))
        except attempts.TooManyAttempts as error:
            caught = (number, error.retry_after_s)
            break
    assert caught == (50, 1)
    attempts.count(session, VAULT, attempts.of_password("60@x.example", "203.0.113.8"))


def test_codes_and_ones_own_password_are_counted_too(api: TestClient, person: Person) -> None:
    with clock.shifted(later()):
        headers = bearer(person.sign_in(api, code=person.code())["access_token"])
        wrong = {"password": "wrong horse", "new_password": "nine quiet lighthouses"}
        path = "/v1/account/password"
        seen = [api.post(path, json=wrong, headers=headers).status_code for _index in range(6)]
    assert seen == [401] * 5 + [429]
    elsewhere = [
        TestClient(api.app, base_url="http://127.0.0.1:8000", client=(f"203.0.113.{number}", 1))
        for number in range(6)
    ]
    codes = [one.post("/v1/sessions", json=person.body(code="000000")).status_code for one in elsewhere]
    assert codes == [401] * 5 + [429]


def test_what_is_counted_names_nobody(api: TestClient, session: Session) -> None:
    person = add_person(session)
    api.post("/v1/sessions", json=person.body(password="wrong horse"))
    for row in session.scalars(sa.select(Attempts)):
        assert len(row.key_hmac) == 32
        assert person.email.encode() not in row.key_hmac


class Noting:
    """The hasher, which notes by what parameters it worked."""

    def __init__(self, done: list[str]) -> None:
        self._done, self._real = done, passwords.HASHER

    def verify(self, password_hash: str, password: str) -> bool:
        self._done.append("$".join(password_hash.split("$")[:4]))
        return self._real.verify(password_hash, password)


def test_a_known_and_an_unknown_address_take_the_same_work(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hash of the same parameters, and the same statements in the same order: nothing to measure."""
    person = add_person(session)
    passwords.nobodys_hash()
    connection = session.connection()
    work: list[list[str]] = []
    for email, address in ((person.email, "203.0.113.7"), ("nobody@riverside.example", "203.0.113.8")):
        done: list[str] = []
        work.append(done)

        def note(_c: object, _cursor: object, statement: str, *_rest: object, done: list[str] = done) -> None:
            done.append(statement)

        attempt = sign_in.Attempt(
            email=email, password="wrong horse", code=None, recovery_code=None, address=address
        )
        with monkeypatch.context() as patch:
            patch.setattr(passwords, "HASHER", Noting(done))
            event.listen(connection, "before_cursor_execute", note)
            candidate = sign_in.begin(session, VAULT, attempt)
            assert passwords.matches(attempt.password, candidate.password_hash) is False
            event.remove(connection, "before_cursor_execute", note)
    assert len(work[0]) > 4
    assert sorted(work[0]) == sorted(work[1])  # the two counts are locked in the order of their hashes
    assert work[0][-1] == "$argon2id$v=19$m=19456,t=2,p=1"
