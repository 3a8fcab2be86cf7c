"""Pins, certificates and proxies of the client's session, on real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.errors import ClientError
from client.proxies import environment_proxy, require_proxy
from client.session import Identity, Session
from client.trust import Trust, require_pins
from tests.certificates import Authority, Issued
from tests.client_folders import adapter, manifest
from tests.recording import PlayedRun, RecordingServer
from tests.tls_servers import PROXY_VARIABLES, Ear, Proxy

KEY = Ed25519PrivateKey.generate()
AUTHORITY = Authority()
SERVER = AUTHORITY.issue()
OTHER = AUTHORITY.issue()


@pytest.fixture(autouse=True)
def no_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    return AUTHORITY.write(tmp_path / "ca.pem")


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter()), tls=SERVER.server_context()) as running:
        yield running


def ask(url: str, trust: Trust, *, proxy: str | None = None) -> Session:
    """One request; returns its session, closed."""
    with Session(url, identity=Identity("c", KEY), trust=trust, proxy=proxy, patience_s=0.0) as session:
        session.get("/v1/assignments")
        return session


def refusal(url: str, trust: Trust, *, proxy: str | None = None) -> ClientError:
    with pytest.raises(ClientError) as refused:
        ask(url, trust, proxy=proxy)
    return refused.value


@pytest.mark.parametrize(
    "pins",
    [(SERVER.pin,), (OTHER.pin, SERVER.pin), (AUTHORITY.pin,), ()],
    ids=["its key", "the next key", "its authority's key", "none"],
)
def test_a_server_with_a_pinned_key_is_asked(
    server: RecordingServer, ca_file: str, pins: tuple[str, ...]
) -> None:
    session = ask(server.url, Trust(ca_file, pins=pins))
    assert [heard.path for heard in server.heard] == ["/v1/tokens", "/v1/assignments"]
    assert session.server_key == (SERVER.pin, "CN=test authority")


@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "through a proxy"])
def test_a_server_with_another_key_hears_nothing(ca_file: str, by_proxy: bool) -> None:
    with Ear(SERVER.server_context()) as ear, Proxy() as proxy:
        refused = refusal(ear.url, Trust(ca_file, pins=(OTHER.pin,)), proxy=proxy.url if by_proxy else None)
    assert refused.code == "pin_mismatch"
    assert SERVER.pin in str(refused)
    assert "CN=test authority" in str(refused)
    assert (ear.handshakes, ear.heard) == (1, b"")
    assert [line.split(" ")[0] for line in proxy.asked] == (["CONNECT"] if by_proxy else [])


def test_a_key_that_was_only_sent_along_is_not_the_servers(ca_file: str) -> None:
    """A thief of the connection sends the pinned certificate too; it is in no chain that holds."""
    with Ear(AUTHORITY.issue().server_context(SERVER)) as ear:
        assert refusal(ear.url, Trust(ca_file, pins=(SERVER.pin,))).code == "pin_mismatch"
    assert (ear.handshakes, ear.heard) == (1, b"")


ROGUE = Authority()  # of the same name


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (ROGUE.issue(), "unable to get local issuer certificate|certificate signature failure"),
        (ROGUE.issue(key=SERVER.key), "unable to get local issuer certificate|certificate signature failure"),
        (AUTHORITY.issue(key=SERVER.key, days=(-30, -1)), "expired"),
        (AUTHORITY.issue(key=SERVER.key, days=(2, 30)), "not yet valid"),
        (AUTHORITY.issue("elsewhere.example", key=SERVER.key), "IP address mismatch"),
    ],
    ids=["rogue authority", "rogue authority, right key", "expired", "early", "another name"],
)
def test_a_pin_does_not_stand_for_a_certificate(ca_file: str, shown: Issued, reason: str) -> None:
    with Ear(shown.server_context()) as ear:
        refused = refusal(ear.url, Trust(ca_file, pins=(SERVER.pin, shown.pin)))
    assert refused.code == "certificate_refused"
    assert any(one in str(refused) for one in reason.split("|")), str(refused)
    assert ear.heard == b""


def test_an_extra_authority_is_taken_besides_and_not_instead(tmp_path: Path, ca_file: str) -> None:
    extra = Authority("office")
    extra_file = extra.write(tmp_path / "office.pem")
    for authority in (AUTHORITY, extra):
        shown = authority.issue()
        with RecordingServer(PlayedRun(manifest(), adapter()), tls=shown.server_context()) as server:
            ask(server.url, Trust(ca_file, extra_file, pins=(shown.pin,)))
    with Ear(extra.issue().server_context()) as ear:
        assert refusal(ear.url, Trust(ca_file)).code == "certificate_refused"


def test_a_proxy_is_asked_to_connect_and_reads_nothing(server: RecordingServer, ca_file: str) -> None:
    with Proxy(account="anna:secret") as proxy:
        named = proxy.url.replace("http://", "http://anna:secret@")
        ask(server.url, Trust(ca_file, pins=(SERVER.pin,)), proxy=named)
        assert [heard.path for heard in server.heard] == ["/v1/tokens", "/v1/assignments"]
        assert refusal(server.url, Trust(ca_file), proxy=proxy.url).code == "server_unreachable"
    assert {line.split(" ")[0] for line in proxy.asked} == {"CONNECT"}


def test_a_proxy_that_opens_tls_reads_nothing_of_a_pinned_client(
    server: RecordingServer, ca_file: str, tmp_path: Path
) -> None:
    office = Authority("Office Inspection CA")
    office_file = office.write(tmp_path / "office.pem")
    with Proxy(inspects=office) as proxy:
        unknown = refusal(server.url, Trust(ca_file, pins=(SERVER.pin,)), proxy=proxy.url)
        known = refusal(server.url, Trust(ca_file, office_file, (SERVER.pin,)), proxy=proxy.url)
        assert (server.heard, proxy.read) == ([], b"")
        ask(server.url, Trust(ca_file, office_file), proxy=proxy.url)  # without pins it would
        assert b"/v1/tokens" in proxy.read
    assert (unknown.code, known.code) == ("certificate_refused", "pin_mismatch")
    assert "CN=Office Inspection CA" in str(known)


def test_a_proxy_over_tls_is_known_by_its_certificate_and_the_server_by_its_pin(
    server: RecordingServer, ca_file: str
) -> None:
    with Ear(ROGUE.issue().server_context()) as fake:
        assert (
            refusal(server.url, Trust(ca_file, pins=(SERVER.pin,)), proxy=fake.url).code
            == "certificate_refused"
        )
    assert (server.heard, fake.heard) == ([], b"")


def test_within_a_proxys_tls_the_pin_is_looked_at_too(server: RecordingServer, ca_file: str) -> None:
    with Proxy(tls=AUTHORITY.issue().server_context()) as proxy:
        ask(server.url, Trust(ca_file, pins=(SERVER.pin,)), proxy=proxy.url)
        assert [heard.path for heard in server.heard] == ["/v1/tokens", "/v1/assignments"]
        assert refusal(server.url, Trust(ca_file, pins=(OTHER.pin,)), proxy=proxy.url).code == "pin_mismatch"
    assert len(server.heard) == 2


def test_a_proxy_of_the_environment_is_taken_only_when_that_is_said(
    monkeypatch: pytest.MonkeyPatch, server: RecordingServer, ca_file: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    ask(server.url, Trust(ca_file))
    told = refusal("https://127.0.0.1:9", Trust(ca_file))
    assert told.code == "server_unreachable"
    assert "HTTPS_PROXY is set, and nothing is taken from it" in str(told)
    assert environment_proxy("https://fed.example:8443") == "http://127.0.0.1:9"
    monkeypatch.setenv("NO_PROXY", "fed.example")
    assert environment_proxy("https://fed.example:8443") is None
    assert environment_proxy("https://other.example") == "http://127.0.0.1:9"


@pytest.mark.parametrize("named", ["ftp://x:1", "http://", "nothing", "http://x:99999", "socks5://x:1"])
def test_what_is_no_proxy_is_refused(named: str) -> None:
    with pytest.raises(ClientError) as refused:
        require_proxy(named)
    assert refused.value.code == "bad_proxy"


@pytest.mark.parametrize(
    "pin",
    ["", "sha256//", f"{SERVER.pin}x", SERVER.pin[8:], "sha1//" + "A" * 43 + "="],
    ids=["nothing", "no digest", "too long", "no prefix", "another digest"],
)
def test_what_is_no_pin_is_refused(pin: str) -> None:
    with pytest.raises(ClientError) as refused:
        require_pins([pin])
    assert refused.value.code == "bad_pin"


def test_a_ca_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    for trust in (Trust(str(tmp_path / "empty.pem")), Trust(None, str(tmp_path / "missing.pem"))):
        with pytest.raises(ClientError) as refused:
            Session("https://127.0.0.1:9", trust=trust)
        assert refused.value.code == "bad_ca_file"


def test_the_system_is_trusted_where_no_authority_is_named() -> None:
    context = Trust().context()
    assert context.get_ca_certs() == httpx2.create_ssl_context(trust_env=False).get_ca_certs()
    with Ear(SERVER.server_context()) as ear:
        assert refusal(ear.url, Trust()).code == "certificate_refused"
