"""Tokens, retries and refusals of the client's HTTP session, against a server that records it."""

import time
from collections.abc import Iterator
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.errors import ClientError
from client.session import Identity, Session, server_address
from tests.client_folders import adapter, manifest
from tests.recording import Answer, PlayedRun, RecordingServer, problem

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        yield running


@pytest.fixture
def session(server: RecordingServer) -> Iterator[Session]:
    running = Session(server.url, identity=Identity("client-1", KEY), patience_s=2.0)
    yield running
    running.close()


def paths(server: RecordingServer) -> list[str]:
    return [heard.path.partition("?")[0] for heard in server.heard]


def test_a_token_is_asked_for_by_assertion_and_used_again(server: RecordingServer, session: Session) -> None:
    session.get("/v1/assignments")
    session.get("/v1/assignments")
    assert paths(server) == ["/v1/tokens", "/v1/assignments", "/v1/assignments"]
    form = parse_qs(server.heard[0].body.decode())
    claims = jwt.decode(
        form["client_assertion"][0],
        KEY.public_key(),
        algorithms=["EdDSA"],
        audience=f"{server.url}/v1/tokens",
    )
    assert (claims["iss"], claims["sub"]) == ("client-1", "client-1")
    assert 0 < claims["exp"] - time.time() <= 300
    assert server.heard[1].headers["Authorization"] == "DPoP t"


def test_a_token_that_no_longer_holds_is_renewed_once(server: RecordingServer, session: Session) -> None:
    answers = iter([problem(401, "unauthorized")])
    server.script = lambda heard: next(answers, None) if heard.path == "/v1/assignments" else None
    session.get("/v1/assignments")
    assert paths(server) == ["/v1/tokens", "/v1/assignments", "/v1/tokens", "/v1/assignments"]
    server.script = lambda heard: problem(401, "unauthorized") if heard.path == "/v1/assignments" else None
    with pytest.raises(ClientError, match="unauthorized told"):
        session.get("/v1/assignments")


def test_a_token_request_that_is_repeated_is_signed_anew(server: RecordingServer, session: Session) -> None:
    answers = iter([problem(503, "unavailable", headers={"Retry-After": "0"})])
    server.script = lambda heard: next(answers, None) if heard.path == "/v1/tokens" else None
    session.get("/v1/assignments")
    first, second = (parse_qs(heard.body.decode())["client_assertion"][0] for heard in server.heard[:2])
    assert first != second


def test_a_clock_that_is_off_is_told_with_both_clocks(server: RecordingServer, session: Session) -> None:
    server.script = lambda _heard: problem(401, "clock_skew", server_time="2031-05-06T07:08:09Z")
    with pytest.raises(ClientError, match="2031-05-06T07:08:09") as refused:
        session.get("/v1/assignments")
    assert refused.value.code == "clock_skew"
    assert str(refused.value).startswith(f"this machine's clock says {time.gmtime().tm_year}")


@pytest.mark.parametrize("status", [429, 502, 503, 504, 507])
def test_what_may_come_out_differently_later_is_asked_again(
    server: RecordingServer, session: Session, status: int
) -> None:
    answers = iter([problem(status, "later", headers={"Retry-After": "0"})] * 2)
    server.script = lambda heard: next(answers, None) if heard.path == "/v1/assignments" else None
    assert session.get("/v1/assignments").status == 200
    assert paths(server).count("/v1/assignments") == 3


@pytest.mark.parametrize("stated", ["nan", "-inf", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_pause_that_makes_no_sense_is_a_short_one(
    server: RecordingServer, session: Session, stated: str
) -> None:
    answers = iter([problem(503, "unavailable", headers={"Retry-After": stated})])
    server.script = lambda heard: next(answers, None) if heard.path == "/v1/assignments" else None
    session.get("/v1/assignments")
    assert paths(server).count("/v1/assignments") == 2


def test_patience_ends_with_the_servers_code(server: RecordingServer, session: Session) -> None:
    server.script = lambda _heard: problem(503, "unavailable", headers={"Retry-After": "60"})
    with pytest.raises(ClientError) as refused:
        session.get("/v1/assignments")
    assert refused.value.code == "unavailable"


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    session = Session("http://127.0.0.1:9", patience_s=0.1)
    with pytest.raises(ClientError) as refused:
        session.get("/v1/assignments")
    session.close()
    assert refused.value.code == "server_unreachable"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(403, "suspended"), "suspended"),
        (Answer(500, content=b"<html>"), "unexpected_answer"),
        (Answer(400, {"code": "\x1b[31mred", "detail": "x"}), "refused"),
        (Answer(302, {}, headers={"Location": "http://elsewhere"}), "unexpected_answer"),
    ],
)
def test_a_refusal_keeps_the_servers_code_if_it_is_one(
    server: RecordingServer, session: Session, answer: Answer, code: str
) -> None:
    server.script = lambda heard: answer if heard.path == "/v1/assignments" else None
    with pytest.raises(ClientError) as refused:
        session.get("/v1/assignments")
    assert refused.value.code == code


def test_a_servers_text_cannot_write_to_the_terminal(server: RecordingServer, session: Session) -> None:
    answer = Answer(403, {"code": "no", "detail": "\x1b]0;owned\x07" + "x" * 1000})
    server.script = lambda heard: answer if heard.path == "/v1/assignments" else None
    with pytest.raises(ClientError) as refused:
        session.get("/v1/assignments")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_an_answer_larger_than_allowed_is_not_read_to_its_end(
    server: RecordingServer, session: Session
) -> None:
    server.script = lambda heard: Answer(content=b"x" * 100_000) if "adapter" in heard.path else None
    with pytest.raises(ClientError) as refused:
        session.download(f"/v1/rounds/{server.run.round_id}/adapter", limit_bytes=1000)
    assert refused.value.code == "answer_too_large"


@pytest.mark.parametrize("content", [b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 100_000, b"\xff"])
def test_json_is_read_strictly(server: RecordingServer, session: Session, content: bytes) -> None:
    server.script = lambda heard: Answer(content=content) if heard.path == "/v1/assignments" else None
    with pytest.raises(ClientError) as refused:
        session.get("/v1/assignments").json("list")
    assert refused.value.code == "unexpected_answer"


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("http://example.org", "insecure_server"),
        ("ftp://example.org", "bad_server"),
        ("https://user:secret@example.org", "bad_server"),
        ("nonsense", "bad_server"),
    ],
)
def test_an_address_without_tls_or_sense_is_refused(address: str, code: str) -> None:
    with pytest.raises(ClientError) as refused:
        server_address(address, allow_http=False)
    assert refused.value.code == code
    assert server_address("http://example.org/", allow_http=True) == "http://example.org"
    assert server_address("http://127.0.0.1:8000/", allow_http=False) == "http://127.0.0.1:8000"


def test_nothing_of_the_environment_changes_where_bytes_go(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    session = Session(server.url, identity=Identity("client-1", KEY), patience_s=0.1)
    assert session.get("/v1/assignments").status == 200
    session.close()


def test_the_user_agent_tells_name_and_version_only(server: RecordingServer, session: Session) -> None:
    session.get("/v1/assignments")
    for heard in server.heard:
        assert heard.headers["User-Agent"].partition("/")[0] == "dpfl-client"
        assert heard.headers["User-Agent"].count(" ") == 0
        assert set(heard.headers.keys()) <= {
            "Host",
            "Accept",
            "Accept-Encoding",
            "Connection",
            "User-Agent",
            "Authorization",
            "DPoP",
            "Content-Length",
            "Content-Type",
        }
