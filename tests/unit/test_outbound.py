"""What this server asks of others: where it may go, and what it takes."""

import socket

import pytest

from app.core.outbound import Outbound, OutboundRefused, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104  refused
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "2002:0a00:0001::",
        "ff02::1",
        "not an address",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/latest",
        "https://localhost/",
        "https://169.254.169.254/latest/meta-data",
        "http://93.184.216.34/",
        "file:///etc/passwd",
        "gopher://93.184.216.34/",
        "https://user:password@93.184.216.34/",
        "https://",
        "",
        "//x",
        "https://x\x00.example/",
        "https://" + "a" * 300 + ".example/",
    ],
)
def test_where_a_stranger_could_send_us_we_do_not_go(url: str) -> None:
    outbound = Outbound(trusted_hosts=frozenset(), allow_http=False)
    with pytest.raises(OutboundRefused):
        outbound.get_json(url)


def test_a_name_with_one_address_inside_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One public and one inner address: whoever answers for the name may send us to either."""

    def found(_host: str, port: int, **_rest: object) -> list[tuple[object, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("93.184.216.34", port)), (*kind, ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with pytest.raises(OutboundRefused):
        Outbound(trusted_hosts=frozenset(), allow_http=False).get_json("https://idp.example/")


def test_a_named_host_may_be_inside_and_still_must_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        outbound = Outbound(trusted_hosts=frozenset({"127.0.0.1"}), allow_http=True)
        with pytest.raises(OutboundRefused):
            outbound.get_json(f"http://127.0.0.1:{port}/")
