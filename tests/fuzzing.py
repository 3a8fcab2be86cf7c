"""A served gateway with something in it, a caller of every role, and schemathesis against it.

Used by tests/system/test_schemathesis.py, and with more of everything by tests/fuzz/every_role.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx2
from sqlalchemy.orm import Session

from app.core.canonical import canonical_sha256
from app.core.db import Database
from app.custody.blobs import Blobs
from app.identity.models import Client, Organisation
from app.identity.roles import Role
from app.releases.models import Release
from app.rounds.states import RoundState
from app.runs.models import RunClient
from app.runs.states import RunState
from tests.builders import build_round, build_run
from tests.database import TEST_MASTER_KEY, settings_for
from tests.http.accounts import Applicant, token_form
from tests.proofs import Hand, base64url

PUBLIC_URL = "http://127.0.0.1:8000"
"""Not where it listens: proofs are about the address that clients call."""
CONFIGURATION = Path(__file__).parent / "fuzz" / "schemathesis.toml"
PRICE = {
    "noise_multiplier": 1.0,
    "epsilon": 1.0,
    "delta": 1e-6,
    "epsilon_by_round": [0.7, 1.0],
    "accountant": "test",
}
CERTIFICATE = {"version": 1, "privacy": {"claimed": False}}
STARTED = (RunState.RUNNING, RunState.PAUSED, RunState.FINISHED)


@dataclass
class Gateway:
    """A served gateway with something in it."""

    url: str
    authorizations: dict[str, str]
    hand: Hand
    ids: dict[str, list[str]]
    log: Path


def seed(session: Session, client: Client, blobs: Blobs) -> dict[str, list[str]]:
    """Runs in several states with the client in them, open and published rounds, and releases."""
    organisation = session.get_one(Organisation, client.organisation_id)
    digest = blobs.of(organisation.id).put(b"adapter")
    ids: dict[str, list[str]] = {"run_id": [], "round_id": [], "release_id": []}
    for state in (RunState.DRAFT, RunState.PRICED, *STARTED):
        run = build_run(session, organisation=organisation, clients=1, state=state)
        session.add(RunClient(run_id=run.id, client_id=client.id))
        if state is not RunState.DRAFT:
            run.price = PRICE
        ids["run_id"].append(str(run.id))
        if state in STARTED:
            run.manifest_sha256 = canonical_sha256(run.manifest)
            round_state = RoundState.OPEN if state is RunState.RUNNING else RoundState.PUBLISHED
            session.flush()
            row = build_round(session, round_state, run=run, adapter_sha256=digest)
            ids["round_id"].append(str(row.id))
        if state is RunState.FINISHED:
            release = Release(
                run_id=run.id,
                round_id=row.id,
                organisation_id=organisation.id,
                number=1,
                adapter_sha256=digest,
                size_bytes=7,
                adapter_config={"r": 2},
                certificate=CERTIFICATE,
            )
            session.add(release)
            session.flush()
            ids["release_id"].append(str(release.id))
    return ids


def serve(folder: Path, database_url: str) -> tuple[subprocess.Popen[bytes], str, str]:
    """Bootstrap and start a gateway; returns it with its address and the administrator's key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = os.environ | {
        "DATABASE_URL": database_url,
        "BLOB_URL": f"file://{folder}/blobs",
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
        "DPFL_ADMIN_FILE": str(folder / "admin.json"),
        "DPFL_PUBLIC_URL": PUBLIC_URL,
        "DPFL_PORT": str(port),
        # It calls as often as it can; what a refusal for that looks like is shown elsewhere.
        "DPFL_MEMBER_CALLS_PER_MINUTE": "10000000",
        "DPFL_CLIENT_CALLS_PER_MINUTE": "10000000",
    }
    command = [sys.executable, "-m", "app"]
    subprocess.run([*command, "bootstrap"], env=variables, check=True, timeout=180, stdout=subprocess.DEVNULL)
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stderr=log)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        try:
            httpx2.get(f"{url}/readyz", timeout=60).raise_for_status()
            return process, url, str(json.loads((folder / "admin.json").read_text())["api_key"])
        except httpx2.ConnectError:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise
            time.sleep(0.05)  # nothing tells when a foreign process has begun to listen


@contextmanager
def served(database_url: str, database: Database, folder: Path) -> Iterator[Gateway]:
    """A gateway with a member of every role, a training client, and objects in several states."""
    process, url, admin_key = serve(folder, database_url)
    try:
        with httpx2.Client(
            base_url=url, timeout=60, headers={"Authorization": f"Bearer {admin_key}"}
        ) as http:
            organisation = http.get("/v1/organisations").json()["items"][0]["id"]
            told = {role.value: member(http, organisation, role) for role in Role if role is not Role.CLIENT}
            told |= {Role.ADMIN.value: f"Bearer {admin_key}"}
            invitation = {"organisation_id": organisation, "region": "eu-west-1", "expires_in_s": 3600}
            token = http.post("/v1/enrolments", json=invitation).json()["token"]
            applicant = Applicant()
            made = http.post("/v1/clients", json=applicant.body(token)).json()
            form, hand = token_form(applicant.assertion(made["client_id"])), Hand()
            proof = {"DPoP": hand.proof("POST", f"{PUBLIC_URL}/v1/tokens")}
            access = http.post("/v1/tokens", data=form, headers=proof).json()["access_token"]
            told |= {Role.CLIENT.value: f"DPoP {access}"}
        with database.run_tx("seed") as session:
            client = session.get_one(Client, UUID(made["client_id"]))
            settings = settings_for(database_url, folder / "blobs")
            ids = seed(session, client, Blobs.of_process(settings, database))
        ids |= {"client_id": [made["client_id"]], "account_id": [made["account_id"]]}
        yield Gateway(url=url, authorizations=told, hand=hand, ids=ids, log=folder / "gateway.log")
    finally:
        process.terminate()
        process.wait(20)


def member(http: httpx2.Client, organisation: str, role: Role) -> str:
    """What a member of a role, who gets in with an API key, says."""
    body = {"organisation_id": organisation, "name": role.value, "role": role.value, "kind": "service"}
    made = http.post("/v1/members", json=body).raise_for_status().json()
    key = {"label": "fuzzing", "member_id": made["id"]}
    return f"Bearer {http.post('/v1/api-keys', json=key).raise_for_status().json()['api_key']}"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is tried."""

    phases: str
    examples: int
    excluded: tuple[str, ...] = ()
    """Operations that are left out, by name."""
    limit_s: float = 140


def require_conformance(gateway: Gateway, folder: Path, *, caller: str, effort: Effort) -> str:
    """Let schemathesis call every operation as `caller`; returns its report, which holds no failure."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)),
        *("run", f"{gateway.url}/openapi.json"),
        *("--header", f"Authorization: {gateway.authorizations[caller]}"),
        *("--checks", "all", "--phases", effort.phases, "--max-examples", str(effort.examples)),
        # One thread: Python 3.11's parser, which hypothesis uses, counts its depth across threads and fails.
        *("--seed", "20261125", "--workers", "1"),
        *("--generation-database", "none", "--no-shrink", "--continue-on-failure"),
        *("--request-timeout", "10", "--suppress-health-check", "all", "--warnings", "off", "--no-color"),
    ]
    command += [f"--exclude-operation-id={name}" for name in effort.excluded]
    is_bound = caller == Role.CLIENT.value
    variables = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks",
        "DPFL_TEST_IDS": json.dumps(gateway.ids),
        "DPFL_TEST_KEY": base64url(gateway.hand.key.private_bytes_raw()) if is_bound else "",
        "DPFL_TEST_TOKEN": gateway.authorizations[caller].partition(" ")[2],
        "DPFL_TEST_PUBLIC_URL": PUBLIC_URL,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        command,
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=effort.limit_s,
        check=False,
    )
    (folder / "schemathesis.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "unhandled_error" not in gateway.log.read_text()
    return done.stdout
