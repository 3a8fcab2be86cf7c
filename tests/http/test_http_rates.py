"""How often a known caller may call: with each credential, at all gateways together, Valkey there or not."""

import os
import socket
from collections.abc import Iterator
from uuid import uuid4

import pytest
from fastapi import FastAPI
from prometheus_client import Gauge
from pydantic import SecretStr
from redis import Redis
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.db import Database
from app.core.settings import Settings
from app.http import rates
from app.http.rates import Rates, connected
from app.identity import api_keys
from app.main import install_state
from tests.builders import build_client, principal_of
from tests.http.accounts import VAULT, Caller, add_caller, client_headers
from tests.services import REDIS_VARIABLE

NOBODY = "redis://127.0.0.1:1/0"
FEW = {"member_calls_per_minute": 2, "client_calls_per_minute": 3}


@pytest.fixture
def valkey() -> Iterator[Redis]:
    """The run's Valkey, and no counts of ours in it."""
    with Redis.from_url(os.environ[REDIS_VARIABLE]) as client:
        yield client


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may answer late: what these tests count is not to depend on it."""
    monkeypatch.setattr(rates, "ANSWER_S", 20.0)
    monkeypatch.setattr(rates, "CONNECT_S", 20.0)


def counting(url: str, name: str) -> tuple[Rates, Gauge]:
    """The counts of one process."""
    told, shared = Gauge("told", "A gauge.", registry=None), connected(url)
    assert shared is not None
    return Rates(shared, name=lambda subject: f"dpfl:test:{name}:{subject}", told=told), told


def statuses(api: TestClient, headers: dict[str, str], *, path: str = "/v1/clients", times: int) -> list[int]:
    return [api.get(path, headers=headers).status_code for _call in range(times)]


@pytest.fixture
def few(api: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A gateway that allows a member two calls a minute, and a training client three."""
    monkeypatch.setattr(api.app.state, "settings", settings.model_copy(update=FEW))  # type: ignore[attr-defined]
    return api


def test_a_member_above_the_rate_is_refused_and_told_when_to_come_back(
    few: TestClient, session: Session
) -> None:
    admin = add_caller(session)
    assert statuses(few, admin.headers, times=2) == [200, 200]
    refused = few.get("/v1/clients", headers=admin.headers)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_calls")
    assert (refused.headers["retry-after"], refused.json()["retryable"]) == ("30", True)
    other = api_keys.add_api_key(
        session, VAULT, member_id=admin.principal.id, label="another", expires_in_s=None
    )
    assert statuses(few, {"Authorization": f"Bearer {other.text}"}, times=1) == [200]


def test_what_is_refused_for_its_role_is_counted_too(few: TestClient, session: Session) -> None:
    headers = client_headers(few.app, principal_of(build_client(session)))  # type: ignore[arg-type]
    assert statuses(few, headers, path="/v1/api-keys", times=4) == [403, 403, 403, 429]
    another = client_headers(few.app, principal_of(build_client(session)))  # type: ignore[arg-type]
    assert statuses(few, another, path="/v1/assignments", times=1) == [200]


def test_all_gateways_of_a_public_address_count_together_and_under_names_that_tell_nothing(
    shared_app: FastAPI, settings: Settings, rolled_back: Database, session: Session, valkey: Redis
) -> None:
    before = set(valkey.keys("dpfl:rate:*"))

    def calls(admin: Caller, public_url: str) -> int:
        told = {"redis_url": SecretStr(os.environ[REDIS_VARIABLE]), "public_url": public_url}
        install_state(shared_app, settings.model_copy(update=FEW | told), rolled_back)  # one more process
        with_errors = TestClient(shared_app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        (status,) = statuses(with_errors, admin.headers, times=1)
        shared_app.state.rates.close()
        return status

    admin, here = add_caller(session), f"http://127.0.0.1:8000/{uuid4()}"
    assert [calls(admin, here) for _process in range(3)] == [200, 200, 429]
    assert calls(admin, f"http://127.0.0.1:8000/{uuid4()}") == 200
    (name, *_more) = made = set(valkey.keys("dpfl:rate:*")) - before
    assert len(made) == 2
    assert len(name) == len(b"dpfl:rate:") + 32
    assert 0 < valkey.pttl(name) <= 60_000  # forgotten when its caller pauses


def test_two_processes_take_from_one_count_exactly(valkey: Redis) -> None:
    name = str(uuid4())
    (first, _told), (second, _same) = (counting(os.environ[REDIS_VARIABLE], name) for _process in range(2))
    waits = [(first, second)[number % 2].take("x", per_minute=6) for number in range(8)]
    assert waits[:6] == [0.0] * 6
    assert 9 < waits[6] <= 10
    assert first.take("y", per_minute=6) == 0.0
    first.close()
    second.close()


def test_without_valkey_every_request_is_answered_and_counted_here(
    few: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = few.app.state  # type: ignore[attr-defined]  # a FastAPI application
    gone = Rates(connected(NOBODY), name=str, told=state.metrics.rates_local)
    monkeypatch.setattr(state, "rates", gone)
    assert state.metrics.registry.get_sample_value("dpfl_rates_local") == 0.0
    assert statuses(few, add_caller(session).headers, times=3) == [200, 200, 429]
    assert state.metrics.registry.get_sample_value("dpfl_rates_local") == 1.0


def test_a_valkey_that_is_silent_is_waited_for_once_and_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # as short as it really is
    assert rates.ANSWER_S < 0.1
    monkeypatch.setattr(rates, "PAUSE_S", 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and says nothing
        process, told = counting(f"redis://127.0.0.1:{mute.getsockname()[1]}/0", "mute")
        assert [process.take("x", per_minute=60) for _call in range(20)] == [0.0] * 20
        assert told.collect()[0].samples[0].value == 1.0
        mute.setblocking(False)
        mute.accept()[0].close()
        with pytest.raises(BlockingIOError):  # nobody came a second time
            mute.accept()
        process.close()


def test_a_valkey_that_is_back_is_counted_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    process, told = counting(os.environ[REDIS_VARIABLE], str(uuid4()))
    shared = process._shared
    assert shared is not None
    monkeypatch.setitem(shared.connection_pool.connection_kwargs, "password", "wrong")
    assert process.take("x", per_minute=60) == 0.0
    assert told.collect()[0].samples[0].value == 1.0
    monkeypatch.undo()
    shared.connection_pool.reset()
    assert process.take("x", per_minute=60) == 0.0  # not asked yet
    assert told.collect()[0].samples[0].value == 1.0
    monkeypatch.setattr(process, "_asks_at", 0.0)  # the pause is over
    assert process.take("x", per_minute=60) == 0.0
    assert told.collect()[0].samples[0].value == 0.0
    process.close()


def test_after_the_pause_one_request_asks_and_the_others_do_not_wait_with_it() -> None:
    process, _told = counting(NOBODY, "probe")
    process._asks_at = 0.0  # it did not answer, and the pause is over
    assert [process._may_ask() for _request in range(3)] == [True, False, False]
    process.close()


def test_celerys_name_for_a_unix_socket_is_understood_and_another_broker_is_none() -> None:
    found = connected("redis+socket:///run/valkey.sock?virtual_host=2")
    assert found is not None
    assert found.connection_pool.connection_kwargs["path"] == "/run/valkey.sock"
    assert found.connection_pool.connection_kwargs["db"] == 2
    assert connected("sentinel://127.0.0.1:26379") is None


@pytest.mark.parametrize("value", ["CERT_REQUIRED", "required"])
def test_celerys_spelling_of_a_checked_certificate_is_understood(value: str) -> None:
    found = connected(f"rediss://127.0.0.1/0?ssl_cert_reqs={value}")
    assert found is not None
    assert found.connection_pool.connection_kwargs["ssl_cert_reqs"] == "required"


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1/0?connect_timeout=5",
        "redis://127.0.0.1/0?max_connections=few",
        "redis://127.0.0.1/0?protocol=9",
        "rediss://127.0.0.1/0?ssl_cert_reqs=perhaps",
    ],
)
def test_an_option_that_celery_may_take_and_this_library_does_not_fails_no_request(
    few: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    state = few.app.state  # type: ignore[attr-defined]  # a FastAPI application
    alone = Rates(connected(url), name=str, told=state.metrics.rates_local)
    monkeypatch.setattr(state, "rates", alone)
    assert statuses(few, add_caller(session).headers, times=3) == [200, 200, 429]
    assert state.metrics.registry.get_sample_value("dpfl_rates_local") == 1.0
