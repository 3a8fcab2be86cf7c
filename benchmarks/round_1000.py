"""A round of 1,000 clients with 0.3 million parameters each, through the real server over HTTP.

PostgreSQL, Valkey, gateway, dispatcher and one worker are started in a temporary folder; 1,000 clients enrol
and send 1.2 GB of updates over the loopback. Measured from the answer to the last upload until a waiting
reader sees the release, split by the server's own log of the round; memory is each process's peak.
`python -m benchmarks.round_1000`: first the default rule (250 may be hostile), then the plain mean.
"""

from __future__ import annotations

import argparse
import http
import json
import math
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa
import torch

from app.core.db import Database
from app.jobs.models import Job
from app.runs.robust import default_aggregation
from benchmarks.report import goal, report
from benchmarks.update_files import MIB
from cli.embedded.stack import Stack, running_stack
from tests.builders import tiny_manifest
from tests.http.accounts import Applicant, token_form
from tests.system.driver import NO_DP, Federation, Silo, update_file

CLIENTS, RANK, LAYERS, WIDTH = 1000, 64, 6, 384
PATIENCE_S = 900.0
ENROLMENTS_AN_ADDRESS = 50
"""One address may enrol 60 a minute; the clients of this benchmark come from addresses of their own."""
DEFAULT, MEAN = "nearest neighbours, trimmed mean", "mean"
RULES = (DEFAULT, MEAN)


def manifest(rule: str, *, clients: int) -> dict[str, Any]:
    """LoRA of rank 64 on query and value of six layers with A frozen, and a head: 295,682 trained values."""
    tensors: list[dict[str, Any]] = [
        {"name": "base_model.model.classifier.weight", "shape": [2, WIDTH], "trained": True},
        {"name": "base_model.model.classifier.bias", "shape": [2], "trained": True},
    ]
    for layer in range(LAYERS):
        for module in ("query", "value"):
            path = f"base_model.model.bert.encoder.layer.{layer}.attention.self.{module}"
            tensors += [
                {"name": f"{path}.lora_A.weight", "shape": [RANK, WIDTH], "trained": False},
                {"name": f"{path}.lora_B.weight", "shape": [WIDTH, RANK], "trained": True},
            ]
    robust = default_aggregation(trust="none", min_updates=clients).model_dump(mode="json")
    return tiny_manifest(
        privacy=NO_DP,
        lora={
            "rank": RANK,
            "alpha": float(RANK),
            "target_modules": ["query", "value"],
            "layers": list(range(LAYERS)),
        },
        quorum={"min_updates": clients, "max_updates": clients},
        rounds=1,
        round_deadline_s=3600,
        **({"aggregation": robust} if rule == DEFAULT else {}),
    ) | {"tensors": sorted(tensors, key=lambda tensor: str(tensor["name"]))}


def enrol(federation: Federation, count: int) -> None:
    """Let clients in and give each its access token."""
    organisation_id = federation.ask("GET", "/organisations")["items"][0]["id"]
    for first in range(0, count, ENROLMENTS_AN_ADDRESS):
        with elsewhere(federation, first // ENROLMENTS_AN_ADDRESS) as http:
            for _number in range(first, min(first + ENROLMENTS_AN_ADDRESS, count)):
                body = {"organisation_id": organisation_id, "region": "eu-west-1"}
                token = federation.ask("POST", "/enrolments", json=body)["token"]
                applicant = Applicant()
                client_id = given(http.post("/clients", json=applicant.body(token)))["client_id"]
                silo = Silo(applicant, client_id, federation.public_url)
                address = f"{federation.public_url}/v1/tokens"
                form = token_form(applicant.assertion(client_id, aud=address))
                proof = {"DPoP": silo.hand.proof("POST", address)}
                silo.token = given(http.post("/tokens", data=form, headers=proof))["access_token"]
                federation.silos.append(silo)
    federation.silos.sort(key=lambda silo: silo.client_id)


def elsewhere(federation: Federation, number: int) -> httpx2.Client:
    """Connections from another address of the loopback, which on Linux has 16 million."""
    transport = httpx2.HTTPTransport(local_address=f"127.0.1.{number + 1}")
    return httpx2.Client(base_url=federation.http.base_url, transport=transport, timeout=PATIENCE_S)


def given(answer: httpx2.Response) -> dict[str, Any]:
    """What an answer says; a refusal ends the benchmark."""
    answer.raise_for_status()
    shown: dict[str, Any] = answer.json()
    return shown


def updates(count: int, plan: dict[str, Any], *, seed: int) -> Iterator[bytes]:
    """Updates that have something in common, one after the other: together they would not fit everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for _number in range(count):
        yield update_file(lambda shape: 1e-3 * (1.0 + torch.randn(shape, generator=generator)), plan)


def one_round(federation: Federation, stack: Stack, rule: str) -> dict[str, Any]:
    """Send all updates, follow the round to its release, and read where the time went."""
    clients = len(federation.silos)
    plan = manifest(rule, clients=clients)
    round_id = federation.start_run(plan)
    for process in worker_processes(stack):
        (process / "clear_refs").write_text("5")  # the peak so far is not this round's
    before = sum(memory(process, "VmRSS") for process in worker_processes(stack))
    began, size = time.perf_counter(), 0
    for silo, body in zip(federation.silos, updates(clients, plan, seed=RULES.index(rule)), strict=True):
        ask_for_adapter(federation, round_id, silo)
        if federation.send(round_id, silo, body) != http.HTTPStatus.CREATED:
            raise SystemExit("an update was not accepted")
        size += len(body)
    sent = time.perf_counter()
    shown = await_end(federation, round_id)
    ended = time.perf_counter()
    if shown["state"] != "published":
        raise SystemExit(f"the round ended {shown['state']}: {shown.get('reason')}")
    peak = sum(memory(process, "VmHWM") for process in worker_processes(stack))
    return {
        "rule": rule,
        "updates": clients,
        "parameters": sum(math.prod(one["shape"]) for one in plan["tensors"] if one["trained"]),
        "uploaded_mb": round(size / MIB),
        "uploads_s": round(sent - began, 1),
        "published_s": round(ended - sent, 2),
        **split(federation, stack, round_id),
        "worker_extra_mb": round((peak - before) / MIB),
        "gateway_peak_mb": round(memory(Path(f"/proc/{stack.pid_of('gateway')}"), "VmHWM") / MIB),
    }


def ask_for_adapter(federation: Federation, round_id: str, silo: Silo) -> None:
    """Ask for what an update starts from, as every client does; the bytes are taken as known."""
    path = f"/rounds/{round_id}/adapter"
    known = silo.headers("GET", path) | {"If-None-Match": "*"}
    if federation.http.get(path, headers=known).status_code != http.HTTPStatus.NOT_MODIFIED:
        raise SystemExit("the round's adapter could not be asked for")


def await_end(federation: Federation, round_id: str) -> dict[str, Any]:
    """Follow a round until it is over, longer than a test would wait."""
    until = time.monotonic() + PATIENCE_S
    shown: dict[str, Any] = federation.ask("GET", f"/rounds/{round_id}")
    while shown["state"] not in {"published", "aborted"} and time.monotonic() < until:
        shown = federation.ask("GET", f"/rounds/{round_id}", params={"wait": 20, "since": shown["version"]})
    return shown


def split(federation: Federation, stack: Stack, round_id: str) -> dict[str, float]:
    """Seconds of each part after the last upload, by the database's clock."""
    steps = federation.ask("GET", f"/rounds/{round_id}/log")["items"]
    at = {step["dst"]: datetime.fromisoformat(step["at"]) for step in steps}
    database = Database(stack.database_url, pool_size=1)
    with database.run_tx("benchmark") as session:
        asked = sa.select(Job.created_at).where(Job.kind == "publish", Job.key == round_id)
        validated = session.scalars(asked).one()
    database.dispose()
    moments = {
        "waiting_s": (at["sealed"], at["aggregating"]),
        "aggregate_s": (at["aggregating"], at["validating"]),
        "validate_s": (at["validating"], validated),
        "publish_s": (validated, at["published"]),
    }
    return {name: round((after - before).total_seconds(), 3) for name, (before, after) in moments.items()}


def worker_processes(stack: Stack) -> list[Path]:
    """The worker and the child that computes."""
    pid = stack.pid_of("cpu1")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{one}") for one in (str(pid), *children)]


def memory(process: Path, field: str) -> int:
    """A memory figure of a process, in bytes."""
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(clients: int) -> None:
    """Start a stack, enrol, run both rounds, stop it."""
    servers = {"DPFL_TRUSTS": "local,none", "DPFL_ACCESS_TOKEN_S": "3600"}
    rows = []
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder), environment=servers) as stack:
        key = json.loads(stack.admin_file.read_text())["api_key"]
        federation = Federation(stack.url, api_key=key)
        enrol(federation, clients)
        for rule in RULES:
            rows.append(one_round(federation, stack, rule))
            print(rows[-1], flush=True)
        federation.close()
    updates_mb = rows[0]["uploaded_mb"]
    extra = max(row["worker_extra_mb"] for row in rows)
    report(
        "round_1000", rows, [goal("worker_extra_over_updates", round(extra / updates_mb, 3), at_most=0.25)]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="fewer, for a look")
    measure(parser.parse_args().clients)
