"""`dpfl doctor --client`: each thing that can be wrong on the way is named, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from client.invitation import Invitation
from client.profile import Profile
from tests.certificates import Authority
from tests.client_folders import adapter, manifest, profile_in
from tests.recording import Answer, PlayedRun, RecordingServer, problem
from tests.tls_servers import PROXY_VARIABLES, Ear, Proxy

AUTHORITY = Authority("Federation CA")
SERVER = AUTHORITY.issue()
OFFICE = Authority("Office Inspection CA")
TOKEN = "dpfl_enrol_" + "a" * 49
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")


@pytest.fixture(autouse=True)
def no_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter()), tls=SERVER.server_context()) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, server: RecordingServer) -> Path:
    """An enrolled client's folder."""
    folder = profile_in(tmp_path / "site", server=server.url, client_id=server.client_id).folder
    edit(folder, ca_file=AUTHORITY.write(tmp_path / "ca.pem"), pins=[SERVER.pin])
    return folder


def edit(folder: Path, **members: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | members))


def invited(path: Path, server: str, **changed: Any) -> Path:
    values: dict[str, Any] = {"server": server, "ca": AUTHORITY.pem, "pins": [SERVER.pin], "token": TOKEN}
    values |= {"expires_at": TOMORROW, "organisation": "Klinik", "region": "eu-west-1"}
    Invitation(**(values | changed)).write(path)
    return path


def report(path: Path, *options: str, sound: bool = False) -> list[str]:
    """The report's lines, without the last, which says whether all is well."""
    done = CliRunner().invoke(app, ["doctor", "--client", str(path), *options])
    lines = done.stdout.strip().splitlines()
    assert done.exit_code == (0 if sound else 1), done.output
    assert (lines[-1] == "All is well.") is sound
    assert all(line.startswith("ok  ") for line in lines[:-2])
    return lines[:-1]


def steps(lines: list[str]) -> list[str]:
    return [line.removeprefix("ok  ").partition(":")[0] for line in lines]


def test_a_client_that_is_well_is_told_so_and_nothing_changes(site: Path, server: RecordingServer) -> None:
    before = {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}
    lines = report(site, sound=True)
    assert steps(lines) == ["DNS", "port", "TLS", "pin", "clock", "enrolment", "signature"]
    assert {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()} == before
    assert [heard.path.partition("?")[0] for heard in server.heard] == [
        "/healthz",
        "/v1/tokens",
        "/v1/assignments",
    ]


def test_an_invitation_is_examined_and_not_used(tmp_path: Path, server: RecordingServer) -> None:
    answers = {"/v1/enrolments/check": Answer(payload={"region": "eu-west-1", "expires_at": TOMORROW})}
    server.script = lambda heard: answers.get(heard.path)
    path = invited(tmp_path / "invitation.json", server.url)
    with Proxy() as proxy:
        lines = report(path, "--proxy", proxy.url, sound=True)
    assert steps(lines) == ["DNS", "port", "proxy", "TLS", "pin", "clock", "token"]
    assert [heard.path for heard in server.heard] == ["/healthz", "/v1/enrolments/check"]
    answers["/v1/enrolments/check"] = problem(409, "enrolment_used")
    assert report(path)[-1] == "!!  token: [enrolment_used] the server refused: enrolment_used told"
    invited(path, server.url, expires_at="2020-01-01T00:00:00+00:00")
    assert "!!  token: [invitation_expired]" in report(path)[-1]
    path.write_text(path.read_text()[:-9])
    assert report(path)[-1].startswith("!!  [invitation_damaged]")


def test_a_name_without_an_address_is_named(site: Path) -> None:
    edit(site, server="https://no-such-host.invalid")
    assert report(site)[-1].startswith("!!  DNS: no-such-host.invalid has no address here")


def test_a_port_where_nobody_listens_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(site, server="https://127.0.0.1:9")
    assert report(site)[-1].startswith(
        "!!  port: 127.0.0.1:9 cannot be reached (Connection refused): is it up"
    )
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "https_proxy is set and not used" in report(site)[-1]


def test_a_proxy_that_lets_nobody_through_is_named(site: Path) -> None:
    with Proxy(account="anna:secret") as proxy:
        edit(site, proxy=proxy.url)
        assert "wants an account" in report(site)[-1]
        edit(site, proxy=proxy.url.replace("//", "//anna:secret@"))
        report(site, sound=True)
        edit(site, proxy=proxy.url.replace("//", "//anna:secret@"), server="https://127.0.0.1:9")
        lines = report(site)
    assert lines[-1].startswith("!!  proxy: 127.0.0.1:")
    assert "does not let us through to 127.0.0.1:9 (502)" in lines[-1]
    assert "secret" not in "".join(lines)


def test_a_proxy_that_opens_tls_is_named_by_its_issuer(site: Path, tmp_path: Path) -> None:
    with Proxy(inspects=OFFICE) as proxy:
        edit(site, proxy=proxy.url)
        untrusted = report(site)[-1]
        edit(site, extra_ca_file=OFFICE.write(tmp_path / "office.pem"))
        trusted = report(site)[-1]
        assert proxy.read == b""
    assert untrusted.startswith("!!  TLS: the certificate is refused (")
    assert trusted.startswith("!!  pin: the key shown is sha256//")
    for line in (untrusted, trusted):
        assert "issued by CN=Office Inspection CA" in line
        assert "have it leave 127.0.0.1 alone" in line


@pytest.mark.parametrize(
    ("days", "name", "told"),
    [
        ((-30, -1), "127.0.0.1", "this machine's clock says"),
        ((3, 30), "127.0.0.1", "this machine's clock says"),
        ((-1, 30), "elsewhere.example", "IP address mismatch"),
    ],
)
def test_a_certificate_that_does_not_hold_is_named(
    site: Path, days: tuple[int, int], name: str, told: str
) -> None:
    with Ear(AUTHORITY.issue(name, key=SERVER.key, days=days).server_context()) as ear:
        edit(site, server=ear.url)
        line = report(site)[-1]
    assert line.startswith("!!  TLS: ")
    assert told in line
    assert "issued by CN=Federation CA" in line
    assert ear.heard == b""


def test_another_key_is_named(site: Path) -> None:
    edit(site, pins=[OFFICE.pin])
    lines = report(site)
    assert steps(lines)[:-1] == ["DNS", "port", "TLS"]
    assert f"!!  pin: the key shown is {SERVER.pin}" in lines[-1]


@pytest.mark.parametrize("off_s", [-3600.0, 40.0])
def test_clocks_that_differ_are_both_told(site: Path, server: RecordingServer, off_s: float) -> None:
    server.clock_off_s = off_s
    line = report(site)[-1]
    there = (datetime.now(UTC) + timedelta(seconds=off_s)).isoformat()[:16]
    assert line.startswith(f"!!  clock: this machine's says {datetime.now(UTC).isoformat()[:13]}")
    assert f"the server's {there}" in line


def test_a_client_that_is_not_let_in_is_told_why(site: Path, server: RecordingServer) -> None:
    server.script = lambda heard: problem(403, "suspended") if heard.path == "/v1/tokens" else None
    assert report(site)[-1] == "!!  enrolment: [suspended] the server refused: suspended told"


def test_a_signature_that_is_not_taken_is_told(site: Path, server: RecordingServer) -> None:
    def refusing(heard: Any) -> Answer | None:
        return problem(401, "dpop_invalid") if heard.path.startswith("/v1/assignments") else None

    server.script = refusing
    assert report(site)[-1].startswith(
        f"!!  signature: the server refuses what this client signs for {server.url}"
    )


def test_what_is_neither_folder_nor_invitation_is_told(tmp_path: Path) -> None:
    assert report(tmp_path)[-1].startswith("!!  [no_profile]")
    assert report(tmp_path / "nothing")[-1].startswith("!!  [cannot_read]")


def test_a_token_is_sent_to_nobody_in_clear_text(tmp_path: Path) -> None:
    path = invited(tmp_path / "invitation.json", "http://fed.example", pins=[], ca=None)
    assert report(path)[-1].startswith("!!  [insecure_server]")


def test_a_client_that_only_trains_has_no_way_to_examine(site: Path) -> None:
    edit(site, hands_over=True)
    assert report(site)[-1].startswith("!!  [trains_only]")
    assert Profile.open(site).config.hands_over
