"""A live server, as `dpfl up` runs it with TLS, for the clients to be checked against."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from cli.embedded.processes import free_port
from cli.embedded.stack import answers, start_stack, stop_stack
from client.trust import Trust
from tests.builders import QUERY, tiny_manifest
from tests.system.driver import NO_DP, Federation

READY_LIMIT_S = 180.0
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Server:
    """A running stack, and its administrator."""

    url: str
    authority: Path
    """The certificate of its own authority."""
    admin_file: Path
    federation: Federation


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Run the whole stack for the length of the block; it lets runs without a privacy claim in."""
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    environment = {
        "DPFL_PUBLIC_URL": url,
        "DPFL_TRUSTS": "local,none",
        # A client is given its proofs when it starts; a busy machine takes its time until the last is sent.
        "DPFL_CLOCK_LEEWAY_S": "120",
    }
    stack = start_stack(folder, environment=environment, port=port)
    authority = folder / "tls" / "ca.pem"
    try:
        ends = time.monotonic() + READY_LIMIT_S
        while not (authority.exists() and answers(url, authority=authority)):
            if stack.process.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"sdk-check: the server did not become ready\n{stack.log.read_text()}")
            time.sleep(_PAUSE_S)
        yield Server(url, authority, stack.admin_file, _federation(url, authority, stack.admin_file))
    finally:
        stop_stack(stack)


def _federation(url: str, authority: Path, admin_file: Path) -> Federation:
    federation = Federation(url, api_key=json.loads(admin_file.read_text())["api_key"])
    federation.http.close()
    verified = Trust(str(authority)).context()
    federation.http = httpx2.Client(base_url=f"{url}/v1", timeout=60.0, verify=verified)
    return federation


def plan(*, clients: int, rows: int = 4, rounds: int = 1, **changes: Any) -> dict[str, Any]:
    """A plan without a privacy claim, whose updates hold `rows` times eight bytes and a small head."""
    tensors = [
        {"name": f"{QUERY}.lora_A.weight", "shape": [2, 4], "trained": False},
        {"name": f"{QUERY}.lora_B.weight", "shape": [rows, 2], "trained": True},
        {"name": "base_model.model.classifier.weight", "shape": [2, 4], "trained": True},
    ]
    quorum = {"min_updates": clients, "max_updates": clients}
    named: dict[str, Any] = {"privacy": NO_DP, "quorum": quorum, "rounds": rounds} | changes
    manifest = tiny_manifest(**named)
    manifest["tensors"] = sorted(tensors, key=lambda one: str(one["name"]))
    return manifest
