"""kill -9 in a round that the server noises: one release, every account charged once, no secret left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from app.core.db import Database
from app.rounds.models import RoundSecret
from tests.builders import tiny_manifest
from tests.central import CENTRAL
from tests.database import clone_of
from tests.system.driver import Federation, Processes, Silo, eventually, random_updates

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("kills")]
SILOS = 3
PRIVACY = CENTRAL | {
    "cohort": {"kind": "poisson", "rate": 0.75, "cap": SILOS, "n_max": SILOS},
    "divisor": 0.75 * SILOS,
    "noise_multiplier": 4.0,
    "epsilon": None,
}
POINTS = (
    "price.after_compute",
    "aggregate.before_tx1",
    "aggregate.after_tx1",
    "aggregate.after_noise",
    "aggregate.after_blob",
    "aggregate.before_tx2",
    "publish.after_blob",
    "publish.after_tx",
)


@pytest.fixture(scope="module")
def database_url(template_name: str) -> Iterator[str]:
    with clone_of(template_name) as url:
        yield url


@pytest.fixture(scope="module")
def processes(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One stack for all tests here: each leaves it whole. A price takes a second, on a busy machine three."""
    stack = Processes(database_url, tmp_path_factory.mktemp("stack"), lease_s=6.0)
    try:
        stack.start("worker1", "worker2", "dispatcher", "gateway")
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def federation(processes: Processes) -> Iterator[Federation]:
    """Fresh silos, and so fresh accounts, for every test."""
    federation = Federation(processes.url, api_key=processes.api_key)
    federation.enrol(SILOS, unit="client")
    yield federation
    federation.close()


def plan() -> dict[str, Any]:
    quorum = {"min_updates": 0, "max_updates": SILOS, "seal": "quorum"}
    return tiny_manifest(privacy=PRIVACY, quorum=quorum, rounds=1)


def drawn(federation: Federation, round_id: str) -> list[Silo]:
    """The silos that were drawn, each of which knows it of itself alone."""
    return [
        silo
        for silo in federation.silos
        if any(
            one["round_id"] == round_id for one in federation.ask("GET", "/assignments", silo=silo)["items"]
        )
    ]


def send(federation: Federation, round_id: str) -> None:
    """Every silo that was drawn sends its update; nobody else can."""
    members = drawn(federation, round_id)
    for silo, body in zip(federation.silos, random_updates(SILOS, seed=7), strict=True):
        assert federation.send(round_id, silo, body) == (201 if silo in members else 404)


def accounts(federation: Federation) -> list[tuple[float, float, list[str]]]:
    """Spent, reserved, and what the entries are, on the account of each silo."""
    found = []
    for silo in federation.silos:
        (account,) = federation.ask("GET", "/budgets", silo=silo)["items"]
        entries = federation.ask("GET", f"/budgets/{account['id']}/entries", silo=silo)["items"]
        assert federation.ask("GET", f"/budgets/{account['id']}/chain", silo=silo)["holds"]
        kinds = [entry["kind"] for entry in entries]
        found.append((account["amounts"]["spent"], account["amounts"]["reserved"], kinds))
    return found


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_a_point_leaves_one_release_and_every_account_right(
    processes: Processes, federation: Federation, database_url: str, point: str
) -> None:
    with processes.paused(point) as reached:
        if point.startswith("price."):
            round_id = start_through_a_kill(processes, federation, reached)
            send(federation, round_id)
        else:
            round_id = federation.start_run(plan())
            send(federation, round_id)
            victim = reached()
            processes.kill(victim)
            processes.start(victim)
    shown = federation.await_end(round_id)
    assert (shown["state"], shown["updates"]) == ("published", None)
    assert len(federation.ask("GET", "/releases", params={"run_id": shown["run_id"]})["items"]) == 1
    found = accounts(federation)
    assert len({(spent, reserved) for spent, reserved, _kinds in found}) == 1
    assert found[0][0] > 0.0
    assert found[0][1] == 0.0
    assert all(kinds == ["grant", "reserve", "spend"] for *_amounts, kinds in found)
    database = Database(database_url, pool_size=1)
    with database.run_tx("test") as session:
        assert session.scalars(sa.select(RoundSecret)).all() == []
    database.dispose()


def start_through_a_kill(processes: Processes, federation: Federation, reached: Any) -> str:
    """Start a run whose price job dies once."""
    body = {"manifest": plan(), "client_ids": [silo.client_id for silo in federation.silos]}
    run_id = federation.ask("POST", "/runs", json=body)["id"]
    federation.ask("POST", f"/runs/{run_id}/price")
    victim = reached()
    processes.kill(victim)
    processes.start(victim)
    eventually(
        lambda: federation.ask("GET", f"/runs/{run_id}")["state"] == "priced", what="the price is there"
    )
    federation.ask("POST", f"/runs/{run_id}/start")
    return str(federation.ask("GET", f"/runs/{run_id}/rounds")["items"][0]["id"])


def test_a_gateway_killed_after_the_seal_loses_nothing(processes: Processes, federation: Federation) -> None:
    round_id = federation.start_run(plan())
    processes.kill("dispatcher")
    send(federation, round_id)
    if drawn(federation, round_id):
        raise AssertionError("every drawn silo has sent")
    processes.kill("gateway")
    processes.start("gateway", "dispatcher")
    shown = federation.await_end(round_id)
    assert shown["state"] == "published"
    assert all(kinds == ["grant", "reserve", "spend"] for *_amounts, kinds in accounts(federation))
