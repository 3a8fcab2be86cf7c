"""Client certificates on real sockets: which connections are refused, and what a stolen token is worth."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from app.core.authority import Authority
from cli.embedded.tls import TlsFiles, ensure_tls
from tests.database import TEST_MASTER_KEY
from tests.http.accounts import Applicant, token_form
from tests.proofs import Hand
from tests.tls import Shown, context_of, issued, request_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


@dataclass
class Server:
    """A gateway that speaks TLS."""

    url: str
    port: int
    files: TlsFiles
    folder: Path
    admin_key: str

    @property
    def authority(self) -> Authority:
        return Authority.read(self.files.authority.read_bytes(), self.files.authority_key.read_bytes())

    def http(self, shown: Shown | None = None) -> httpx2.Client:
        context = context_of(self.files.authority, shown)
        return httpx2.Client(base_url=self.url, verify=context, trust_env=False, timeout=20)

    def admin(self, method: str, path: str, **options: Any) -> Any:
        with self.http() as http:
            headers = {"Authorization": f"Bearer {self.admin_key}"}
            answer = http.request(method, path, headers=headers, **options)
        assert answer.is_success, answer.text
        return answer.json()


@contextmanager
def serving(database_url: str, folder: Path, mode: str) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    files, url = ensure_tls(folder / "tls", "127.0.0.1"), f"https://127.0.0.1:{port}"
    variables = os.environ | files.environment()
    variables |= {
        "DATABASE_URL": database_url,
        "BLOB_URL": f"file://{folder}/blobs",
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
        "DPFL_ENVIRONMENT": "development",
        "DPFL_ADMIN_FILE": str(folder / "admin.json"),
        "DPFL_PUBLIC_URL": url,
        "DPFL_PORT": str(port),
        "DPFL_CLIENT_CERTIFICATES": mode,
    }
    command = [sys.executable, "-m", "app"]
    subprocess.run([*command, "bootstrap"], env=variables, check=True, timeout=60, stdout=subprocess.DEVNULL)
    key = str(json.loads((folder / "admin.json").read_text())["api_key"])
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "gateway.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)  # nothing tells when a foreign process has begun to listen
        yield Server(url, port, files, folder, key)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[Server]:
    with serving(database_url, tmp_path, "optional") as running:
        yield running


@dataclass
class Member:
    """An enrolled training client with a certificate."""

    applicant: Applicant
    client_id: str
    proven: Hand
    token: str
    shown: Shown
    certificate_id: str


def member(server: Server, name: str) -> Member:
    """Enrol, get a token by proof, and a certificate by that token."""
    organisation = server.admin("GET", "/v1/organisations")["items"][0]["id"]
    invitation = {"organisation_id": organisation, "region": "eu-west-1"}
    invited = server.admin("POST", "/v1/enrolments", json=invitation)["token"]
    applicant, hand, key = Applicant(), Hand(), ec.generate_private_key(ec.SECP256R1())
    with server.http() as http:
        client_id = http.post("/v1/clients", json=applicant.body(invited)).json()["client_id"]
        token = exchange(
            http, server, applicant, client_id, DPoP=hand.proof("POST", f"{server.url}/v1/tokens")
        )
        told = hand.headers("POST", f"{server.url}/v1/certificates", token)
        made = http.post("/v1/certificates", json={"signing_request": request_of(key)}, headers=told)
    assert made.status_code == 201, made.text
    shown = Shown.write(server.folder, name, made.json()["certificate"].encode(), key)
    return Member(applicant, client_id, hand, token, shown, made.json()["id"])


def exchange(
    http: httpx2.Client, server: Server, applicant: Applicant, client_id: str, **headers: str
) -> str:
    form = token_form(applicant.assertion(client_id, aud=f"{server.url}/v1/tokens"))
    answer = http.post("/v1/tokens", data=form, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def ask(server: Server, token: str, shown: Shown | None) -> tuple[int, str]:
    with server.http(shown) as http:
        answer = http.get("/v1/assignments", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, answer.json().get("code", "")


def test_a_token_that_is_bound_to_a_certificate_is_worth_nothing_without_it(server: Server) -> None:
    own, other = member(server, "own"), member(server, "other")
    with server.http(own.shown) as http:
        token = exchange(http, server, own.applicant, own.client_id)
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert set(claims["cnf"]) == {"x5t#S256"}
    assert ask(server, token, own.shown) == (200, "")
    assert ask(server, token, other.shown) == (401, "proof_refused")
    assert ask(server, token, None) == (401, "proof_refused")
    with server.http(other.shown) as http:  # nor does another's certificate get a token for this client
        form = token_form(own.applicant.assertion(own.client_id, aud=f"{server.url}/v1/tokens"))
        assert http.post("/v1/tokens", data=form).json()["code"] == "proof_refused"
    path = f"/v1/clients/{own.client_id}/certificates/{own.certificate_id}/revoke"
    assert server.admin("POST", path)["revoked_at"] is not None
    assert ask(server, token, own.shown) == (401, "proof_refused")
    unknown = issued(server.authority, server.folder, own.client_id)
    assert ask(server, token, unknown) == (401, "proof_refused")


def test_connections_that_are_refused(server: Server, tmp_path: Path) -> None:
    rogue = Authority.new("DP-Federated LoRA Lab", at=datetime.now(UTC))
    stranger = issued(rogue, tmp_path, "stranger")
    ended = issued(server.authority, tmp_path, "ended", lifetime=timedelta(seconds=-60))
    as_server = Shown(server.files.certificate, server.files.key)
    for shown in (stranger, ended, as_server):
        with server.http(shown) as http, pytest.raises(httpx2.TransportError):
            http.get("/healthz")
    with server.http() as http:
        assert http.get("/healthz").status_code == 200
    old = context_of(server.files.authority)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", server.port)) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert b"HTTP/1.1 200" not in plain.recv(1000)


def test_without_a_certificate_nobody_is_heard_where_one_is_required(
    database_url: str, tmp_path: Path
) -> None:
    with serving(database_url, tmp_path, "required") as server:
        with server.http() as http, pytest.raises(httpx2.TransportError):
            http.get("/healthz")
        with server.http(issued(server.authority, tmp_path, "known")) as http:
            assert http.get("/healthz").status_code == 200


def test_plain_http_is_for_this_machine_alone(database_url: str, tmp_path: Path) -> None:
    variables = os.environ | {
        "DATABASE_URL": database_url,
        "BLOB_URL": f"file://{tmp_path}/blobs",
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
        "DPFL_ENVIRONMENT": "development",
        "DPFL_HOST": "0.0.0.0",  # noqa: S104  (it is refused)
        "DPFL_PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "app"], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "without TLS" in done.stderr
