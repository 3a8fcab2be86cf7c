"""A federation out of one file, on a real stack: dry, made, repeated, enrolled, priced."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from client.invitation import read_invitation
from tests.client_folders import MAILS
from tests.system.driver import Federation, Processes, eventually
from tests.unit.test_cli_silos import EXAMPLE

SILOS = ("klinik-aachen", "klinik-bonn", "hospital-lisboa")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


def dpfl(*arguments: object) -> list[str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def begun(lines: list[str], word: str) -> int:
    return sum(line.startswith(f"{word}: ") for line in lines)


@pytest.mark.system
@pytest.mark.timeout(300)
def test_a_federation_is_made_from_one_file_and_repeating_it_makes_only_what_lacks(
    tmp_path: Path, database_url: str
) -> None:
    processes = Processes(database_url, tmp_path, lease_s=120.0)
    federation = Federation(processes.url, api_key=processes.api_key)
    to, key_file, data = tmp_path / "federation", tmp_path / "admin.json", tmp_path / "mails.jsonl"
    data.write_text("".join(json.dumps(mail) + "\n" for mail in MAILS))
    key_file.write_text(json.dumps({"url": processes.url, "api_key": processes.api_key}))
    init = ("federation", "init", EXAMPLE, "--to", to, "--key-file", key_file)
    try:
        processes.start("gateway", "dispatcher", "worker1")
        before = federation.ask("GET", "/organisations")["items"]
        dry = dpfl(*init, "--dry-run")
        assert begun(dry, "to make") == 3 * 3 + 2
        assert not to.exists()
        assert federation.ask("GET", "/organisations")["items"] == before

        made = dpfl(*init)
        assert begun(made, "made") == 3 * 3 + 2
        assert "3 of 3 have yet to enrol; then the same command creates the run" in made
        first = {name: read_invitation(to / name / "invitation.json") for name in SILOS}
        assert {one.region for one in first.values()} == {"eu-central-1", "eu-west-1"}
        price = json.loads((to / "price.json").read_text())
        assert 1.99 < price["epsilon_pld"] <= 2.0

        (to / SILOS[0] / "invitation.json").write_text("{}")
        again = dpfl(*init)
        assert begun(again, "is there") == 3 * 3 - 1
        assert read_invitation(to / SILOS[0] / "invitation.json").token != first[SILOS[0]].token
        assert read_invitation(to / SILOS[1] / "invitation.json") == first[SILOS[1]]

        for name in SILOS:
            policy, place = to / name / "policy.toml", tmp_path / "sites" / name
            told = ("--policy", policy, "--data", data, "--folder", place, "--ledgers", tmp_path / "l" / name)
            dpfl("client", "enrol", to / name / "invitation.json", *told)
        done = dpfl(*init)
        assert begun(done, "enrolled") == 3
        assert "made: run first run" in done
        runs = federation.ask("GET", "/runs")["items"]
        assert [run["name"] for run in runs] == ["first run"]
        assert runs[0]["manifest"]["use"]["purpose"] == "letter-triage"
        clients = federation.ask("GET", "/clients")["items"]
        assert sorted(client["jurisdiction"] for client in clients) == ["DE", "DE", "PT"]

        def state() -> str:
            return str(federation.ask("GET", f"/runs/{runs[0]['id']}")["state"])

        eventually(lambda: state() != "pricing", what="the plan is priced")
        assert state() == "priced"
        last = dpfl(*init)
        assert begun(last, "made") == 2  # the plan and its price are written anew, to the same bytes
        assert f"is there: run {runs[0]['id']} (first run): priced" in last
    finally:
        federation.close()
        processes.stop()
