"""kill -9 anywhere: the round ends, and the same update files give the same adapter."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from uuid import uuid4

import httpx2
import pytest
import redis
import torch

from cli.embedded.valkey import Valkey
from tests.builders import tiny_manifest
from tests.database import clone_of
from tests.system.driver import (
    NO_DP,
    Federation,
    Processes,
    eventually,
    random_updates,
    update_file,
)

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("kills")]
SILOS = 3
WORKERS = ("worker1", "worker2")
POINTS = (
    "aggregate.before_tx1",
    "aggregate.after_tx1",
    "aggregate.after_compute",
    "aggregate.after_blob",
    "aggregate.before_tx2",
    "aggregate.after_tx2",
    "validate.after_read",
    "validate.after_compute",
    "publish.before_read",
    "publish.after_blob",
    "publish.after_tx",
)


@pytest.fixture(scope="module")
def processes(template_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One stack for all tests here: each leaves it whole."""
    with clone_of(template_name) as database_url:
        folder = tmp_path_factory.mktemp("stack")
        stack = Processes(database_url, folder)
        try:
            stack.start(*WORKERS, "dispatcher", "gateway")
            yield stack
        finally:
            stack.stop()


@pytest.fixture(scope="module")
def federation(processes: Processes) -> Iterator[Federation]:
    federation = Federation(processes.url, api_key=processes.api_key)
    federation.enrol(SILOS)
    yield federation
    federation.close()


@pytest.fixture(scope="module")
def updates() -> list[bytes]:
    return random_updates(SILOS, seed=7)


@pytest.fixture(scope="module")
def expected(federation: Federation, updates: list[bytes]) -> str:
    """The digest of an undisturbed round."""
    round_id = federation.start_run()
    federation.send_all(round_id, updates)
    return federation.digest_of(round_id)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_a_point_changes_nothing(
    processes: Processes, federation: Federation, updates: list[bytes], expected: str, point: str
) -> None:
    round_id = federation.start_run()
    with processes.paused(point) as reached:
        federation.send_all(round_id, updates)
        victim = reached()
        processes.kill(victim)
    processes.start(victim)
    assert federation.digest_of(round_id) == expected


def test_a_killed_dispatcher_delays_only(
    processes: Processes, federation: Federation, updates: list[bytes], expected: str
) -> None:
    round_id = federation.start_run()
    processes.kill("dispatcher")
    federation.send_all(round_id, updates)
    assert federation.ask("GET", f"/rounds/{round_id}")["state"] == "sealed"
    processes.start("dispatcher")
    assert federation.digest_of(round_id) == expected


def test_a_dispatcher_that_is_told_to_stop_ends_cleanly(processes: Processes) -> None:
    assert processes.terminate("dispatcher") == 0
    processes.start("dispatcher")


def test_a_gateway_killed_in_the_middle_of_an_upload_takes_the_same_bytes_again(
    processes: Processes, federation: Federation, updates: list[bytes], expected: str
) -> None:
    round_id = federation.start_run()
    update_id, body, silo = str(uuid4()), updates[0], federation.silos[0]
    half, killed = threading.Event(), threading.Event()

    def dribble() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        half.set()
        killed.wait(30)
        yield body[len(body) // 2 :]

    def upload() -> None:
        path = f"/rounds/{round_id}/updates/{update_id}"
        headers, url = silo.update_headers(path, body), f"{processes.url}/v1{path}"
        with pytest.raises(httpx2.TransportError):
            httpx2.put(url, content=dribble(), headers=headers, timeout=30)

    sending = threading.Thread(target=upload)
    sending.start()
    assert half.wait(30)
    path = f"/rounds/{round_id}"
    eventually(lambda: federation.ask("GET", path)["updates"]["receiving"] == 1, what="the PUT has begun")
    processes.kill("gateway")
    killed.set()
    sending.join(30)
    processes.start("gateway")
    other = update_file(torch.zeros)
    assert federation.send(round_id, silo, other, update_id=update_id) == 409
    assert federation.send(round_id, silo, body, update_id=update_id) == 201
    assert federation.send(round_id, silo, body, update_id=update_id) == 200
    for silo_, body_ in zip(federation.silos[1:], updates[1:], strict=True):
        assert federation.send(round_id, silo_, body_) == 201
    assert federation.digest_of(round_id) == expected


def test_a_flushed_broker_delays_only(
    processes: Processes, federation: Federation, updates: list[bytes], expected: str
) -> None:
    round_id = federation.start_run()
    for worker in WORKERS:
        processes.kill(worker)
    client = redis.Redis.from_url(processes.valkey.url)
    federation.send_all(round_id, updates)
    eventually(lambda: client.llen("cpu"), what="the hint is in the broker")
    client.flushall()
    client.close()
    processes.start(*WORKERS)
    assert federation.digest_of(round_id) == expected


def test_with_the_broker_down_updates_are_accepted_and_worked_on_later(
    processes: Processes, federation: Federation, updates: list[bytes], expected: str
) -> None:
    round_id = federation.start_run()
    port = processes.valkey.port
    processes.valkey.stop()
    federation.send_all(round_id, updates)
    assert federation.ask("GET", f"/rounds/{round_id}")["state"] == "sealed"
    processes.valkey = Valkey.start(processes.folder / "valkey", password="driver", durable=False, port=port)
    assert federation.digest_of(round_id) == expected


def test_a_non_finite_update_is_shown_as_rejected(federation: Federation, updates: list[bytes]) -> None:
    quorum = {"min_updates": 2, "max_updates": SILOS}
    round_id = federation.start_run(tiny_manifest(privacy=NO_DP, rounds=1, quorum=quorum))
    broken = update_file(lambda shape: torch.full(shape, torch.nan))
    federation.send_all(round_id, [broken, *updates[1:]])
    shown = federation.await_end(round_id)
    assert (shown["state"], shown["updates"]["rejected"]) == ("published", 1)


def test_a_round_whose_deadline_passes_without_a_quorum_is_aborted_with_its_reason(
    federation: Federation, updates: list[bytes]
) -> None:
    quorum = {"min_updates": 2, "max_updates": SILOS}
    plan = tiny_manifest(privacy=NO_DP, rounds=1, quorum=quorum, round_deadline_s=1)
    shown = federation.await_end(federation.start_run(plan))
    assert (shown["state"], shown["abort_code"]) == ("aborted", "quorum_missing")
    run = federation.ask("GET", f"/runs/{shown['run_id']}")
    assert (run["state"], run["reason_code"]) == ("paused", "quorum_missing")


def test_a_job_over_its_time_limit_is_killed_and_done_again(
    processes: Processes, federation: Federation, updates: list[bytes], expected: str
) -> None:
    round_id = federation.start_run()
    with processes.paused("aggregate.after_blob") as reached:
        federation.send_all(round_id, updates)
        reached()
        assert federation.digest_of(round_id) == expected


def test_a_paused_worker_that_wakes_after_its_lease_changes_nothing(
    processes: Processes, federation: Federation, updates: list[bytes], expected: str
) -> None:
    round_id = federation.start_run()
    with processes.paused("aggregate.before_tx2") as reached:
        federation.send_all(round_id, updates)
        victim = reached()
        leader = processes.process(victim).pid
        os.killpg(leader, signal.SIGSTOP)
        assert federation.digest_of(round_id) == expected
    os.killpg(leader, signal.SIGCONT)
    other = federation.start_run()
    federation.send_all(other, updates)
    assert federation.digest_of(other) == expected
    steps = federation.ask("GET", f"/rounds/{round_id}/log")["items"]
    assert [step["dst"] for step in steps].count("validating") == 1
