"""Drives a whole federation with ready-made update files: real processes, HTTP only, nothing is trained.

`Processes` runs gateway, dispatcher and workers, each of which a test may kill; `Federation` is everybody
who talks to the gateway.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
import torch
from safetensors.torch import save
from torch import Tensor

from app.core.db import Database
from app.identity.bootstrap import bootstrap
from cli.embedded.valkey import Valkey
from tests.builders import tiny_manifest
from tests.database import TEST_MASTER_KEY, settings_for
from tests.http.accounts import VAULT, Applicant, token_form
from tests.proofs import Hand, signed_update

PATIENCE_S = 60.0
NO_DP: dict[str, Any] = {
    "trust": "none",
    "clip_norm": None,
    "noise_multiplier": None,
    "epsilon": None,
    "delta": None,
}
T = TypeVar("T")


def eventually(look: Callable[[], T], *, what: str, patience_s: float = PATIENCE_S) -> T:
    """Look again and again until there is something, within bounds."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {patience_s} s")


class Processes:
    """Gateway, dispatcher and workers as processes of their own, each leading a group."""

    def __init__(self, database_url: str, folder: Path, *, lease_s: float = 3.0) -> None:
        self.folder = folder
        self.pauses = folder / "pauses"
        self.pauses.mkdir()
        self.valkey = Valkey.start(folder / "valkey", password="driver", durable=False)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | {
            "DATABASE_URL": database_url,
            "REDIS_URL": self.valkey.url,
            "BLOB_URL": f"file://{folder}/blobs",
            "DPFL_MASTER_KEY": TEST_MASTER_KEY,
            "DPFL_ENVIRONMENT": "development",
            "DPFL_TRUSTS": "local,central,none",
            "DPFL_PUBLIC_URL": self.url,
            "DPFL_PORT": str(self.port),
            "DPFL_LEASE_S": str(lease_s),
            "DPFL_TICK_S": "0.2",
            "DPFL_RESEND_S": "1",
            "DPFL_PAUSE_FOLDER": str(self.pauses),
            "OMP_NUM_THREADS": "1",
        }
        self.api_key = first_admin(database_url, folder)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        """Start `gateway`, `dispatcher` or any `worker...`; the gateway is waited for."""
        for name in names:
            log = (self.folder / f"{name}.log").open("ab")
            with log:
                self._running[name] = subprocess.Popen(
                    [sys.executable, "-m", *_module(name)],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if name == "gateway":
                self.await_gateway()

    def await_gateway(self) -> None:
        """Wait until the gateway is ready."""

        def is_ready() -> bool:
            try:
                return httpx2.get(f"{self.url}/readyz").status_code == 200
            except httpx2.TransportError:
                return False

        eventually(is_ready, what="the gateway answers")

    def kill(self, name: str) -> None:
        """kill -9 a process and its children."""
        process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)

    def terminate(self, name: str) -> int:
        """Ask a process to end; returns its exit code."""
        process = self._running.pop(name)
        process.terminate()
        return process.wait(PATIENCE_S)

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """A running process; its pid is its group's."""
        return self._running[name]

    def stop(self) -> None:
        """Kill everything."""
        for name in list(self._running):
            self.kill(name)
        self.valkey.stop()

    @contextmanager
    def paused(self, point: str) -> Iterator[Callable[[], str]]:
        """The next worker that comes to `point` stops there; call the result to learn which one did."""
        marker, reached = self.pauses / point, self.pauses / f"{point}.reached"
        marker.touch()

        def wait() -> str:
            group = int(
                eventually(lambda: reached.exists() and reached.read_text(), what=f"{point} is reached") or 0
            )
            return next(name for name, process in self._running.items() if process.pid == group)

        try:
            yield wait
        finally:
            for file in (marker, reached):
                file.unlink(missing_ok=True)


def _module(name: str) -> Sequence[str]:
    if name == "gateway":
        return ("app",)
    if name == "dispatcher":
        return ("workers.dispatcher",)
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING")
    return ("celery", "-A", "workers.main", "worker", "-Q", "cpu", "-n", f"{name}@%h", *quiet)


@dataclass
class Silo:
    """A training client with its key, and a token that is bound to another one."""

    applicant: Applicant
    client_id: str
    public_url: str
    """The server's address by which it is called."""
    hand: Hand = field(default_factory=Hand)
    token: str = ""

    def headers(self, method: str, path: str) -> dict[str, str]:
        """The token with its proof for one request."""
        return self.hand.headers(method, f"{self.public_url}/v1{path}", self.token)

    def update_headers(self, path: str, body: bytes) -> dict[str, str]:
        """All that an update's PUT needs."""
        signed = signed_update(
            body, address=f"{self.public_url}/v1{path}", client_id=self.client_id, key=self.applicant.key
        )
        return self.headers("PUT", path) | signed


class Federation:
    """An administrator and some silos, over HTTP."""

    def __init__(self, url: str, *, api_key: str, public_url: str | None = None) -> None:
        self.http = httpx2.Client(base_url=f"{url}/v1", timeout=PATIENCE_S)
        self.public_url = public_url or url
        self.admin = {"Authorization": f"Bearer {api_key}"}
        self.silos: list[Silo] = []

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def ask(self, method: str, path: str, *, silo: Silo | None = None, **options: Any) -> Any:
        """One request as the administrator, or as a silo; refusals are failures."""
        headers = self.admin if silo is None else silo.headers(method, path)
        answer = self.http.request(method, path, headers=headers, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def enrol(self, count: int, *, unit: str = "example") -> None:
        """Add silos to the administrator's organisation, whose accounts are by this unit."""
        organisation_id = self.ask("GET", "/organisations")["items"][0]["id"]
        for _silo in range(count):
            budget = {"kind": "basic", "epsilon": 8.0, "delta": 1e-5, "unit": unit}
            body = {"organisation_id": organisation_id, "region": "eu-west-1", "budget": budget}
            token = self.ask("POST", "/enrolments", json=body)["token"]
            applicant = Applicant()
            client_id = self.ask("POST", "/clients", json=applicant.body(token))["client_id"]
            silo = Silo(applicant, client_id, self.public_url)
            address = f"{self.public_url}/v1/tokens"
            form = token_form(applicant.assertion(client_id, aud=address))
            proof = {"DPoP": silo.hand.proof("POST", address)}
            silo.token = self.http.post("/tokens", data=form, headers=proof).json()["access_token"]
            self.silos.append(silo)
        self.silos.sort(key=lambda silo: silo.client_id)

    def start_run(self, manifest: dict[str, Any] | None = None) -> str:
        """Plan, price and start a run with all silos; returns the first round's id."""
        count = len(self.silos)
        plan = manifest or tiny_manifest(
            privacy=NO_DP, rounds=1, quorum={"min_updates": count, "max_updates": count}
        )
        body = {"manifest": plan, "client_ids": [silo.client_id for silo in self.silos]}
        run = self.ask("POST", "/runs", json=body)
        run = self.ask("POST", f"/runs/{run['id']}/price")
        while run["state"] == "pricing":
            run = self.ask("GET", f"/runs/{run['id']}", params={"wait": 20, "since": run["version"]})
        assert run["state"] == "priced", run["reason"]
        self.ask("POST", f"/runs/{run['id']}/start")
        return str(self.ask("GET", f"/runs/{run['id']}/rounds")["items"][0]["id"])

    def send(self, round_id: str, silo: Silo, body: bytes, *, update_id: str | None = None) -> int:
        """Upload one update; returns the status."""
        path = f"/rounds/{round_id}/updates/{update_id or uuid4()}"
        return self.http.put(path, content=body, headers=silo.update_headers(path, body)).status_code

    def send_all(self, round_id: str, bodies: Sequence[bytes]) -> None:
        """Every silo uploads; the last one completes the cohort."""
        for silo, body in zip(self.silos, bodies, strict=True):
            assert self.send(round_id, silo, body) == 201

    def await_end(self, round_id: str) -> dict[str, Any]:
        """Follow a round until it is over."""
        until = time.monotonic() + PATIENCE_S
        shown: dict[str, Any] = self.ask("GET", f"/rounds/{round_id}")
        while shown["state"] not in {"published", "aborted"}:
            assert time.monotonic() < until, f"the round is still {shown['state']}"
            query = {"wait": 5, "since": shown["version"]}
            shown = self.ask("GET", f"/rounds/{round_id}", params=query)
        return shown

    def digest_of(self, round_id: str) -> str:
        """The digest of the adapter that a round was released with."""
        shown = self.await_end(round_id)
        assert shown["state"] == "published", shown
        (release,) = self.ask("GET", "/releases", params={"run_id": shown["run_id"]})["items"]
        return str(release["adapter_sha256"])


def update_file(value: Callable[[tuple[int, ...]], Tensor], manifest: dict[str, Any] | None = None) -> bytes:
    """An update's bytes for a manifest: `value(shape)` makes each trained tensor."""
    tensors = (manifest or tiny_manifest())["tensors"]
    return save({one["name"]: value(tuple(one["shape"])) for one in tensors if one["trained"]})


def random_updates(count: int, *, seed: int, manifest: dict[str, Any] | None = None) -> list[bytes]:
    """The same updates for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        update_file(lambda shape: torch.randn(shape, generator=generator), manifest) for _one in range(count)
    ]


def first_admin(database_url: str, folder: Path) -> str:
    """Bootstrap the database; returns the administrator's API key."""
    database = Database(database_url, pool_size=1)
    file = folder / "admin.json"
    bootstrap(settings_for(database_url, folder / "blobs"), database, VAULT, admin_file=file)
    database.dispose()
    return str(json.loads(file.read_text())["api_key"])
