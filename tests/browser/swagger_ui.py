"""`make test-browser`: an administrator's day in Swagger UI, on a real stack, in a real browser.

Training clients send ready-made updates by themselves (tests/system/driver.py); all that an administrator
does is done in the page, and read from it. Screenshots of each step are in out/browser.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from app.audit.verify import verify
from cli.embedded.stack import Stack, running_stack
from tests.browser.page import Answer, SwaggerUi, browser
from tests.builders import tiny_manifest
from tests.contracts.sources import ROOT
from tests.http.accounts import Applicant, token_form
from tests.http.members import PASSWORD, code_of, secret_in
from tests.system.driver import NO_DP, PATIENCE_S, Federation, Silo, random_updates, update_file

pytestmark = pytest.mark.timeout(600)
SILOS = 6
"""With fewer than five updates in a round nobody is compared with anybody."""
BY_HAND = 2
"""So many are invited and approved in the page; each way takes seconds there."""
EMAIL = "ada@riverside.example"
CODE_S = 30


@dataclass
class Day:
    """What the administrator and the silos have, as it comes about."""

    ui: SwaggerUi
    stack: Stack
    federation: Federation
    organisation: str = ""
    secret: bytes = b""
    used_step: int = 0
    ids: dict[str, str] = field(default_factory=dict)

    def done(self, tag: str, operation: str, **values: Any) -> Any:
        """One act in the page that has to succeed; returns the body that the page shows."""
        answer: Answer = self.ui.call(tag, operation, **values)
        assert answer.status // 100 == 2, f"{operation}: {answer.status} {answer.text}"
        return answer.json if answer.text.strip() else None

    def code(self) -> str:
        """A code of the authenticator that was not used yet: waits for the next one if it must."""
        while int(time.time()) // CODE_S <= self.used_step:
            time.sleep(0.5)
        self.used_step = int(time.time()) // CODE_S
        return code_of(self.secret)


@pytest.fixture
def day(tmp_path: Path) -> Iterator[Day]:
    pictures = ROOT / "out" / "browser"
    shutil.rmtree(pictures, ignore_errors=True)
    with (
        running_stack(tmp_path / "stack", environment={"DPFL_TRUSTS": "local,none"}) as stack,
        browser(tmp_path) as driver,
    ):
        key = json.loads(stack.admin_file.read_text())["api_key"]
        federation = Federation(stack.url, api_key=key)
        ui = SwaggerUi(driver, stack.url, pictures, tmp_path / "downloads")
        yield Day(ui, stack, federation)
        federation.close()


def become_an_administrator_with_a_second_factor(day: Day) -> None:
    """The key of the installation makes a person an administrator, who then needs it no more."""
    day.ui.authorize(json.loads(day.stack.admin_file.read_text())["api_key"])
    home = day.done("organisations", "list_organisations")["items"][0]["id"]
    person = {"organisation_id": home, "name": "Ada", "role": "admin", "email": EMAIL}
    member = day.done("organisations", "create_member", body=person)
    wish = {"purpose": "invitation"}
    token = day.done("organisations", "create_password_token", member_id=member["id"], body=wish)["token"]
    day.ui.forget()
    assert not day.ui.is_authorized
    day.done("sessions", "set_password", body={"token": token, "password": PASSWORD})
    wrong = day.ui.call(
        "sessions", "create_session", body={"email": EMAIL, "password": "x" * 12}, name="wrong"
    )
    assert wrong.status == 401
    assert not day.ui.is_authorized
    day.done("sessions", "create_session", body={"email": EMAIL, "password": PASSWORD})
    assert day.ui.is_authorized
    offer = day.done("sessions", "offer_second_factor", body={"password": PASSWORD})
    day.secret = secret_in(offer["otpauth_uri"])
    codes = day.done("sessions", "confirm_second_factor", body={"code": day.code()})
    assert len(codes["recovery_codes"]) == 10
    day.ui.forget()


def sign_in_with_a_code(day: Day) -> None:
    """Without a code nobody gets in; with one the page is authorized."""
    password = {"email": EMAIL, "password": PASSWORD}
    asked = day.ui.call("sessions", "create_session", body=password, name="code-is-asked-for")
    assert (asked.status, asked.json["code"]) == (401, "second_factor_required")
    tokens = day.done("sessions", "create_session", body=password | {"code": day.code()}, name="signed-in")
    assert day.ui.is_authorized
    day.done("sessions", "refresh_session", body={"refresh_token": tokens["refresh_token"]})
    assert day.done("sessions", "get_account")["role"] == "admin"


def invite_and_approve(day: Day) -> None:
    """An organisation, invitations that wait for approval, and silos that are let in one by one."""
    body = {"name": "Riverside Hospital", "region": "eu-west-1"}
    day.organisation = day.done("organisations", "create_organisation", body=body)["id"]
    for number in range(SILOS):
        wish = {
            "organisation_id": day.organisation,
            "region": "eu-west-1",
            "budget": {"kind": "basic", "epsilon": 4.0, "delta": 1e-5},
            "approval": "manual",
        }
        by_hand = number < BY_HAND
        token = (
            day.done("clients", "create_enrolment", body=wish)
            if by_hand
            else day.federation.ask("POST", "/enrolments", json=wish | {"approval": "automatic"})
        )["token"]
        silo, made = enrol(day, token, name=f"ward-{number}")
        if by_hand:
            assert access(day, silo) == 403
            assert day.done("clients", "approve_client", client_id=silo.client_id)["state"] == "active"
        assert access(day, silo) == 200
        day.federation.silos.append(silo)
        day.ids["account"] = made["account_id"]
    listed = day.done("clients", "list_clients")["items"]
    assert {one["id"] for one in listed} == {silo.client_id for silo in day.federation.silos}
    suspect = day.federation.silos[0].client_id
    assert day.done("clients", "suspend_client", client_id=suspect)["state"] == "suspended"
    assert day.done("clients", "reinstate_client", client_id=suspect)["state"] == "active"
    assert access(day, day.federation.silos[0]) == 200


def enrol(day: Day, token: str, *, name: str) -> tuple[Silo, dict[str, Any]]:
    """A silo that registers with an invitation's token, and the server's answer."""
    applicant = Applicant()
    made = day.federation.http.post("/clients", json=applicant.body(token, name=name)).json()
    return Silo(applicant, made["client_id"], day.stack.url), made


def access(day: Day, silo: Silo) -> int:
    """Ask for the silo's token; returns the status."""
    address = f"{day.stack.url}/v1/tokens"
    form = token_form(silo.applicant.assertion(silo.client_id, aud=address))
    answer = day.federation.http.post(
        "/tokens", data=form, headers={"DPoP": silo.hand.proof("POST", address)}
    )
    if answer.is_success:
        silo.token = answer.json()["access_token"]
    return answer.status_code


def grant_budget(day: Day) -> None:
    """More budget for one silo's data set."""
    before = day.done("budgets", "get_budget", account_id=day.ids["account"])
    grant = {"epsilon": 2.0, "delta": 1e-6, "reason": "Second study, approved"}
    day.done("budgets", "grant_budget", account_id=day.ids["account"], body=grant)
    after = day.done("budgets", "get_budget", account_id=day.ids["account"], name="budget-after")
    assert (before["epsilon"], after["epsilon"]) == (4.0, 6.0)


def plan(rounds: int) -> dict[str, Any]:
    """A run without a claim of privacy, in which each update can be looked at and one may be hostile."""
    return tiny_manifest(
        privacy=NO_DP,
        aggregation={"rule": "median", "faulty": 1},
        rounds=rounds,
        quorum={"min_updates": SILOS, "max_updates": SILOS},
    )


def start_a_run(day: Day) -> None:
    """Plan, price, start, pause, resume."""
    body = {
        "name": "first study",
        "manifest": plan(3),
        "client_ids": [silo.client_id for silo in day.federation.silos],
    }
    run = day.done("runs", "create_run", body=body)
    day.ids["run"] = run["id"]
    day.done("runs", "price_run", run_id=run["id"])
    until(lambda: day.done("runs", "get_run", run_id=run["id"])["state"] == "priced", "the run is priced")
    assert day.done("runs", "start_run", run_id=run["id"])["state"] == "running"
    assert day.done("runs", "pause_run", run_id=run["id"])["state"] == "paused"
    assert day.done("runs", "resume_run", run_id=run["id"])["state"] == "running"


def until(look: Callable[[], bool], what: str) -> None:
    """Look again and again in the page."""
    end = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < end, what
        time.sleep(0.1)  # the same key asks for everything here, and has 1,200 calls a minute


def round_of(day: Day, number: int) -> str:
    """The id of a round, once it is open."""
    found: list[str] = []

    def is_open() -> bool:
        rounds = day.federation.ask("GET", f"/runs/{day.ids['run']}/rounds")["items"]
        found[:] = [one["id"] for one in rounds if (one["number"], one["state"]) == (number, "open")]
        return bool(found)

    until(is_open, f"round {number} opens")
    return found[0]


def reinstate_from_quarantine(day: Day) -> None:
    """A silo that sends something odd twice counts nothing any more, until an administrator takes it back."""
    odd = day.federation.silos[0]
    for number in (1, 2):
        bodies = random_updates(SILOS, seed=number)
        bodies[0] = update_file(lambda shape: torch.full(shape, 1e3))
        day.ids["round"] = round_of(day, number)
        day.federation.send_all(day.ids["round"], bodies)
        assert day.federation.await_end(day.ids["round"])["state"] == "published"
    day.done("rounds", "list_evidence", round_id=day.ids["round"])
    steps = day.done("rounds", "list_standings", client_id=odd.client_id)["items"]
    assert [one["step"] for one in steps] == ["quarantine", "discount"]
    events = day.done("security", "list_security_events")["items"]
    assert any(one["kind"] == "client_at_quarantine" for one in events)
    reversal = {"to": "observe", "reason": "The scanner was replaced; its data had shifted."}
    shown = day.done("rounds", "reverse_standing", client_id=odd.client_id, body=reversal, name="reinstated")
    assert shown["step"] == "observe"
    by_hand = {"to": "quarantine", "reason": "Its owner reported an intrusion."}
    put = day.done("rounds", "reverse_standing", client_id=odd.client_id, body=by_hand, name="by-hand")
    assert put["step"] == "quarantine"
    again = reversal | {"reason": "The machine was set up anew."}
    back = day.done("rounds", "reverse_standing", client_id=odd.client_id, body=again, name="back-by-hand")
    assert back["step"] == "observe"


def retry_a_job(day: Day) -> None:
    """A stored update that cannot be read for a while kills its job; with the store back it is retried."""
    blobs = day.stack.folder.root / "blobs"
    day.ids["round"] = round_of(day, 3)
    bodies = random_updates(SILOS, seed=3)
    before = files(blobs)
    assert day.federation.send(day.ids["round"], day.federation.silos[0], bodies[0]) == 201
    gone = {path: path.read_bytes() for path in files(blobs) - before}
    assert gone
    for path in gone:
        path.unlink()
    for silo, body in zip(day.federation.silos[1:], bodies[1:], strict=True):
        assert day.federation.send(day.ids["round"], silo, body) == 201
    dead: list[dict[str, Any]] = []

    def has_died() -> bool:
        dead[:] = day.federation.ask("GET", "/admin/jobs", params={"state": "dead"})["items"]
        return bool(dead)

    until(has_died, "the job is given up")
    shown = day.done("operation", "list_jobs", state="dead")["items"]
    assert [one["id"] for one in shown] == [dead[0]["id"]]
    for path, content in gone.items():
        path.write_bytes(content)
    day.done("operation", "retry_job", job_id=dead[0]["id"])
    assert day.federation.await_end(day.ids["round"])["state"] == "published"
    assert day.done("rounds", "get_round", round_id=day.ids["round"])["state"] == "published"
    releases = day.done("releases", "list_releases", run_id=day.ids["run"])["items"]
    assert len(releases) == 3
    day.done("releases", "get_certificate", release_id=releases[0]["id"])


def roll_back(day: Day) -> None:
    """The run is over; its last two releases are taken back, and say so to whoever reads them."""
    releases = day.done("releases", "list_releases", run_id=day.ids["run"], name="before")["items"]
    first = min(releases, key=lambda one: one["number"])
    wish = {"release_id": first["id"], "reason": "Since round 2 it calls every newsletter spam."}
    done = day.done("runs", "roll_back_run", run_id=day.ids["run"], body=wish)
    assert [one["number"] for one in done["rolled_back"]] == [2, 3]
    last = done["rolled_back"][-1]["id"]
    assert day.done("releases", "get_release", release_id=last)["rollback_reason"] == wish["reason"]


def files(folder: Path) -> set[Path]:
    """Every file in a folder."""
    return {path for path in folder.rglob("*") if path.is_file()}


def rotate_keys(day: Day) -> None:
    """The federation's signing key, and an API key of one's own."""
    before = day.federation.http.get(f"{day.stack.url}/.well-known/jwks.json").json()["keys"]
    day.done("organisations", "rotate_signing_key", body={"leaked": False})
    after = day.done("clients", "get_signing_keys")["keys"]
    assert {one["kid"] for one in before} < {one["kid"] for one in after}
    made = day.done("organisations", "create_api_key", body={"label": "nightly export"})
    rotated = day.done("organisations", "rotate_api_key", api_key_id=made["id"], body={"overlap_s": 60})
    assert rotated["replaces"] == made["id"]


def export_the_log(day: Day) -> None:
    """The whole audit log, as the page offers it."""
    exported = day.ui.call("audit", "export_audit_log")
    assert exported.status == 200
    with day.ui.download("audit", "export_audit_log").open("rb") as file:
        assert verify(file).shown > 50
    entries = day.done("audit", "list_audit_entries")["items"]
    acts = {one["action"] for one in entries}
    assert {
        "job.retried",
        "standing.reversed",
        "standing.quarantined",
        "run.rolled_back",
        "signing_keys.rotated",
    } <= acts


def test_an_administrator_with_a_second_factor_does_everything_in_the_page(day: Day) -> None:
    day.ui.open()
    for step in (
        become_an_administrator_with_a_second_factor,
        sign_in_with_a_code,
        invite_and_approve,
        grant_budget,
        start_a_run,
        reinstate_from_quarantine,
        retry_a_job,
        roll_back,
        rotate_keys,
        export_the_log,
    ):
        step(day)
        assert day.ui.complaints() == []
