"""The invitation's file: written by an operator, read strictly, and one command on the other machine."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from client.enrolment import keep_policy
from client.errors import ClientError
from client.invitation import MOST_BYTES, Invitation, parse_invitation, read_invitation
from client.policy import Policy
from client.profile import Profile
from tests.certificates import Authority
from tests.client_folders import MAILS, TERMS, adapter, manifest
from tests.contracts.sources import ROOT
from tests.recording import Answer, Heard, PlayedRun, RecordingServer
from tests.tls_servers import PROXY_VARIABLES, Ear, Proxy

AUTHORITY = Authority()
SERVER = AUTHORITY.issue()
NEXT = AUTHORITY.issue()
TOKEN = "dpfl_enrol_" + "a" * 49
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
SITE = ("--labels", "ham,spam", "--text-fields", "subject,body", "--dataset", "mailbox-3")


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter()), tls=SERVER.server_context()) as running:
        yield running


def invitation(server: str = "https://fed.example:8443", **changed: Any) -> Invitation:
    values: dict[str, Any] = {
        "server": server,
        "ca": AUTHORITY.pem,
        "pins": [SERVER.pin, NEXT.pin],
        "token": TOKEN,
        "expires_at": TOMORROW,
        "organisation": "Klinik Süd",
        "region": "eu-west-1",
    }
    return Invitation(**(values | changed))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "invitation.json"
    invitation().write(path)
    return path


def dpfl(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done


def refusal(path: Path) -> ClientError:
    with pytest.raises(ClientError) as refused:
        read_invitation(path)
    return refused.value


def test_what_was_written_is_read_again_and_is_private(written: Path) -> None:
    assert read_invitation(written) == invitation()
    assert written.stat().st_mode & 0o777 == 0o600


def test_it_is_refused_cut_at_any_byte(written: Path) -> None:
    raw = written.read_bytes()
    for size in range(len(raw)):
        with pytest.raises(ClientError, match="no whole invitation"):
            parse_invitation(raw[:size], path=written)


def test_it_is_refused_with_any_of_10000_bytes_changed(written: Path) -> None:
    raw, chance = written.read_bytes(), random.Random(5)
    for _attempt in range(10_000):
        at, bit = chance.randrange(len(raw)), 1 << chance.randrange(8)
        with pytest.raises(ClientError, match="no whole invitation"):
            parse_invitation(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :], path=written)


def changed(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update(members)


@pytest.mark.parametrize(
    ("tamper", "place"),
    [
        (changed(server="https://evil.example"), "server"),
        (changed(ca=None), "ca"),
        (changed(pins=[NEXT.pin]), "pins"),
        (changed(token="dpfl_enrol_" + "b" * 49), "token"),
        (changed(expires_at="2099-01-01T00:00:00+00:00"), "expires_at"),
        (changed(organisation="other"), "organisation"),
        (changed(region="us"), "region"),
        (changed(version=2), "version"),
        (changed(format="x"), "format"),
        (changed(extra=1), "extra"),
        (changed(sums=[]), "sums"),
        (lambda values: values.pop("token"), "token"),
        (lambda values: values["sums"].update(server="0" * 32), "server"),
        (lambda values: values["sums"].update(more="0" * 32), "sums"),
    ],
)
def test_a_changed_member_is_named(
    written: Path, tamper: Callable[[dict[str, Any]], None], place: str
) -> None:
    values = json.loads(written.read_text())
    tamper(values)
    written.write_text(json.dumps(values, indent=2) + "\n")
    assert f": {place} is not as it was written" in str(refusal(written))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda raw: raw.replace(b"{\n", b"{\n ", 1), "line 2"),
        (lambda raw: raw.replace(b'  "token"', b'  "token": 1,\n  "token"', 1), "line 10"),
        (lambda raw: raw.replace(b"expires", b"expi\xffres", 1), "byte"),
        (lambda raw: raw.replace(b",", b"", 1), "line 3, column"),
        (lambda raw: raw + b"\n", "line last"),
        (lambda _raw: b"[" * 60_000, "content"),
        (lambda _raw: b"7", "line 1"),
        (lambda _raw: b" " * (MOST_BYTES + 1), "size"),
        (lambda raw: raw.replace(b"Klinik S\\u00fcd", b"Klinik Sud"), "organisation"),
    ],
)
def test_other_bytes_are_refused_with_their_place(
    written: Path, change: Callable[[bytes], bytes], place: str
) -> None:
    written.write_bytes(change(written.read_bytes()))
    assert f": {place}" in str(refusal(written))


@pytest.mark.parametrize(
    "wrong",
    [
        {"server": "ftp://fed.example"},
        {"server": "https://fed.example\n"},
        {"pins": []},
        {"pins": ["sha256//x"]},
        {"pins": [SERVER.pin] * 5},
        {"ca": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"},
        {"ca": AUTHORITY.pem * 5},
        {"ca": AUTHORITY.pem + "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"},
        {"expires_at": "tomorrow"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"organisation": "red \x1b[31m"},
        {"region": ""},
    ],
)
def test_what_makes_no_sense_is_in_no_invitation(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) + "|pin"):
        invitation(**wrong)


def played_operator(heard: Heard) -> Answer | None:
    """The routes by which an operator invites."""
    path = heard.path.partition("?")[0]
    if path == "/v1/organisations" and heard.method == "GET":
        items = [{"id": str(uuid4()), "name": "somebody else"}]
        return Answer(payload={"items": items, "next_cursor": None})
    if path == "/v1/organisations":
        return Answer(201, {"id": "01976c5e-0000-7000-8000-000000000001"})
    if path == "/v1/enrolments":
        return Answer(201, {"token": TOKEN, "expires_at": TOMORROW})
    return None


@pytest.fixture
def operator(tmp_path: Path, server: RecordingServer) -> Path:
    """The key file of an operator, with the authority beside it."""
    server.script = played_operator
    AUTHORITY.write(tmp_path / "authority.pem")
    path = tmp_path / "admin.json"
    path.write_text(json.dumps({"url": server.url, "api_key": "dpfl_key", "ca_file": "authority.pem"}))
    return path


def test_an_operator_writes_one_file_a_client_pinned_to_the_servers_key(
    tmp_path: Path, server: RecordingServer, operator: Path
) -> None:
    to = tmp_path / "klinik.json"
    given = ("--key-file", operator, "--org", "Klinik Süd", "--region", "eu-west-1")
    done = dpfl("client", "invite", *given, "--expires", 48, "--count", 2, "-o", to, "--next-pin", NEXT.pin)
    assert not to.exists()
    for number in (1, 2):
        found = read_invitation(tmp_path / f"klinik-{number}.json")
        assert found == invitation(server.url)
    assert "a secret until it is used" in done.stdout
    assert f"pinned: {SERVER.pin}, certificate issued by CN=test authority" in done.stdout
    asked = [json.loads(one.body) for one in server.heard if one.path == "/v1/enrolments"]
    assert [one["expires_in_s"] for one in asked] == [48 * 3600] * 2
    assert TOKEN not in done.output


def test_an_operator_names_one_kind_of_file(tmp_path: Path, operator: Path) -> None:
    given = ("client", "invite", "--key-file", operator, "--org", "x")
    assert "[bad_option]" in dpfl(*given, code=1).stderr
    assert "[bad_option]" in dpfl(*given, "--to", tmp_path / "a", "-o", tmp_path / "b", code=1).stderr
    dpfl(*given, "--to", tmp_path / "token")
    assert (tmp_path / "token").read_text() == f"{TOKEN}\n"


@pytest.fixture
def here(tmp_path: Path, server: RecordingServer) -> Path:
    """The other machine's folder, with its data and an invitation."""
    (tmp_path / "mails.jsonl").write_text("".join(json.dumps(mail) + "\n" for mail in MAILS))
    invitation(server.url).write(tmp_path / "invitation.json")
    return tmp_path


def enrol(here: Path, *options: object, code: int = 0) -> Result:
    told = ("--data", here / "mails.jsonl", "--folder", here / "site", "--ledgers", here / "ledgers")
    return dpfl("client", "enrol", here / "invitation.json", *told, *options, code=code)


def test_enrolling_by_an_invitation_is_one_command(here: Path, server: RecordingServer) -> None:
    enrol(here, *SITE)
    config = Profile.open(here / "site").config
    assert (config.server, config.name, config.pins) == (server.url, "mailbox-3", [SERVER.pin, NEXT.pin])
    assert Path(str(config.ca_file)).read_text() == AUTHORITY.pem
    assert json.loads(server.heard[-1].body)["enrolment_token"] == TOKEN
    assert TOKEN not in (here / "site" / "config.json").read_text()
    shown = dpfl("client", "pins", "--folder", here / "site").stdout.split()
    assert shown == [SERVER.pin, NEXT.pin]
    dpfl("client", "pins", "--folder", here / "site", "--replace", NEXT.pin)
    assert Profile.open(here / "site").config.pins == [NEXT.pin]
    assert "[bad_pin]" in dpfl("client", "pins", "--folder", here / "site", "--replace", "x", code=1).stderr
    refused = dpfl("client", "fetch", "--folder", here / "site", code=1)
    assert f"[pin_mismatch] this is not the pinned server: its key is {SERVER.pin}" in refused.stderr


def test_terms_may_be_a_file_and_never_a_mixture(here: Path) -> None:
    keep_policy(here / "proposed", Policy.of(**TERMS))
    policy = next((here / "proposed").rglob("policy.toml"))
    mixed = enrol(here, "--policy", policy, "--epsilon", "2", code=1)
    assert "[bad_option] --epsilon and --policy both name terms" in mixed.stderr
    enrol(here, "--policy", policy)
    assert Profile.open(here / "site").policy == Policy.of(**TERMS)


def test_an_extra_authority_and_a_proxy_are_kept(
    here: Path, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    office = Authority("office").write(here / "office.pem")
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        enrol(here, *SITE, "--use-environment-proxy", "--ca-file", office)
    config = Profile.open(here / "site").config
    assert (config.proxy, config.extra_ca_file) == (proxy.url, office)
    assert config.ca_file == str(here / "site" / "server-ca.pem")
    assert proxy.asked == [f"CONNECT {server.url.removeprefix('https://')} HTTP/1.1"]


def test_an_expired_or_damaged_invitation_connects_to_nobody(here: Path) -> None:
    with Ear(SERVER.server_context()) as ear:
        invitation(ear.url, expires_at="2020-01-01T00:00:00+00:00").write(here / "invitation.json")
        expired = enrol(here, *SITE, code=1)
        raw = (here / "invitation.json").read_bytes()
        (here / "invitation.json").write_bytes(raw.replace(b"2020", b"2099"))
        damaged = enrol(here, *SITE, code=1)
    assert "[invitation_expired]" in expired.stderr
    assert re.search(r"\[invitation_damaged\] .* expires_at is not as it was written", damaged.stderr)
    assert ear.handshakes == 0


def test_what_an_invitation_lacks_is_named(here: Path) -> None:
    assert "[bad_option] --dataset is left out" in enrol(here, code=1).stderr
    both = enrol(here, *SITE, "--server", "https://x.example", code=1)
    assert "[bad_option] the invitation names the server" in both.stderr
    alone = dpfl("client", "enrol", "--folder", here / "x", *SITE, code=1)
    assert "[bad_option] name an invitation's file, or --server and --token" in alone.stderr


def test_a_person_at_a_terminal_is_asked_for_what_is_left_out(here: Path) -> None:
    ours, theirs = pty.openpty()
    told = ("--folder", here / "site", "--ledgers", here / "ledgers")
    enrolling = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "client", "enrol", *map(str, (here / "invitation.json", *told))],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    os.close(theirs)
    with os.fdopen(ours, "wb") as terminal:
        terminal.write(f"mailbox-3\nham,spam\nsubject,body\n{here / 'mails.jsonl'}\n".encode())
        terminal.flush()
        output, _nothing = enrolling.communicate(timeout=60)
    assert enrolling.returncode == 0, output
    config = Profile.open(here / "site").config
    assert (config.dataset, config.data) == ("mailbox-3", str(here / "mails.jsonl"))


def test_a_server_with_another_key_gets_no_token(here: Path) -> None:
    with Ear(NEXT.server_context()) as ear:
        invitation(ear.url, pins=[SERVER.pin]).write(here / "invitation.json")
        assert "[pin_mismatch]" in enrol(here, *SITE, code=1).stderr
    assert (ear.handshakes, ear.heard) == (1, b"")
