"""By which names the gateway may be called."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.core.settings import Environment, Settings
from app.http.hosts import Hosts
from tests.database import settings_for

Called = Callable[..., int]
PUBLIC, PROXY, ELSEWHERE = "https://Lab.example:8443/federated", "10.1.2.3", "203.0.113.9"


@pytest.fixture
def called(settings: Settings) -> Called:
    """The status of a call to production behind a proxy: 200 when it gets through."""
    told = {"environment": Environment.PRODUCTION, "public_url": PUBLIC, "hosts": ("gateway", "fd00::1")}

    async def answer(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("through")

    production = settings.model_copy(update=told)
    app = Starlette(
        routes=[Route("/{path:path}", answer)], middleware=[Middleware(Hosts, settings=production)]
    )
    app.state.settings = production

    def call(*hosts: str, path: str = "/v1/runs", peer: str = PROXY) -> int:
        client = TestClient(app, base_url="http://unused", client=(peer, 4000))
        request = client.build_request("GET", path)
        request.headers = type(request.headers)(
            [(name, value) for name, value in request.headers.items() if name != "host"]
            + [("host", host) for host in hosts]
        )
        return client.send(request).status_code

    return call


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        ("evil.example",),
        ("lab.example.evil.example",),
        ("evil.example:8443",),
        ("lab.example", "lab.example"),
        ("lab.example", "evil.example"),
        ("lab.example@evil.example",),
        ("10.1.2.9:8000",),
        ("127.0.0.1:8000",),
        ("localhost",),
    ],
)
def test_another_name_than_the_gateways_is_refused(called: Called, hosts: tuple[str, ...]) -> None:
    assert called(*hosts) == 421


@pytest.mark.parametrize(
    "host", ["lab.example", "LAB.example.:8443", "lab.example:80", "gateway:8000", "[FD00::0001]:8000"]
)
def test_the_public_host_and_listed_ones_are_taken_at_any_port(called: Called, host: str) -> None:
    assert called(host) == 200


def test_this_machine_may_use_loopback_names_and_nobody_else_may(called: Called) -> None:
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]"):
        assert (called(host, peer="127.0.0.1"), called(host, peer=ELSEWHERE)) == (200, 421)
    assert called("evil.example", peer="127.0.0.1") == 421  # a browser here, and a name that was rebound


def test_probes_ask_by_any_name_and_metrics_by_an_address_but_by_no_foreign_name(called: Called) -> None:
    assert [called("10.1.2.9:8000", path=path) for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
    assert called("here", path="/healthz") == 200
    assert called("evil.example", path="/metrics") == 421


def test_a_refusal_is_a_dressed_problem_document(api: TestClient) -> None:
    answer = api.get("/v1/clients", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (421, "host_unknown")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "evil" not in answer.text
    assert api.get("/v1/clients", headers={"Host": "localhost:1"}).status_code == 401


@pytest.mark.parametrize("wrong", ["https://lab.example", "lab.example:80", "*.example", "a b", "[fd00::1]"])
def test_what_is_no_host_is_no_setting(tmp_path: object, wrong: str) -> None:
    with pytest.raises(ValidationError, match="DPFL_HOSTS"):
        settings_for("postgresql+psycopg://x", tmp_path, hosts=(wrong,))  # type: ignore[arg-type]  # not used
