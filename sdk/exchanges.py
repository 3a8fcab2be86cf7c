"""Both generated clients download and upload 50 MiB, and the memory that it takes them is bounded.

Each does it twice: streamed as docs/guides/other-languages.md says, and with the body held whole, which shows
that the measurement would see it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from sdk.generated import BUILD, python_environment
from sdk.live import Server, plan
from sdk.tools import PYTHON, PYTHON_TOOLS, run
from tests.system.driver import Silo, update_file

LARGE_ROWS = 6_553_600
"""Of eight bytes: 50 MiB."""
WARM_UP_ROWS = 131_072
"""1 MiB, before which buffers are not grown and code is not compiled."""
MOST_BYTES = {"python": 8 * 10**6, "typescript": 16 * 10**6}
"""What a process may hold more, at its peak, than before; a body that is held is 52 MB."""
BODY_BYTES = 52 * 10**6
WAYS = ("streamed", "whole")


def check_exchanges(server: Server, folder: Path) -> None:
    """Run both clients in both ways; raises SystemExit where memory is not flat, or does not show."""
    federation = server.federation
    federation.silos.clear()
    federation.enrol(len(MOST_BYTES) * len(WAYS))
    rounds: list[tuple[str, Path, bytes]] = []
    for rows in (WARM_UP_ROWS, LARGE_ROWS):
        manifest = plan(clients=len(federation.silos), rows=rows)
        body = update_file(lambda shape: torch.full(shape, 0.5), manifest)
        file = folder / f"update-{rows}.safetensors"
        file.write_bytes(body)
        rounds.append((federation.start_run(manifest), file, body))
    silos = iter(federation.silos)
    for language, most_bytes in MOST_BYTES.items():
        for way in WAYS:
            told, silo = folder / f"{language}-{way}.json", next(silos)
            told.write_text(json.dumps([_exchange(server, silo, *one) for one in rounds]))
            grown = json.loads(run([*_command(language), told, way], environment=_environment(server)))
            _report(language, way, grown, most_bytes=most_bytes)


def _exchange(server: Server, silo: Silo, round_id: str, file: Path, body: bytes) -> dict[str, Any]:
    """All that a client has to know; proofs hold for a minute."""
    update_id = str(uuid4())
    upload = f"/rounds/{round_id}/updates/{update_id}"
    return {
        "server": server.url,
        "ca_file": str(server.authority),
        "round_id": round_id,
        "update_id": update_id,
        "file": str(file),
        "adapter_sha256": server.federation.ask("GET", f"/rounds/{round_id}")["adapter_sha256"],
        "update_sha256": hashlib.sha256(body).hexdigest(),
        "download_headers": silo.headers("GET", f"/rounds/{round_id}/adapter"),
        "upload_headers": silo.update_headers(upload, body),
    }


def _command(language: str) -> Sequence[object]:
    if language == "python":
        return (PYTHON_TOOLS / "bin" / "python", PYTHON / "exchange.py")
    return ("node", "--no-warnings", "--expose-gc", BUILD / "exchange.js")


def _environment(server: Server) -> dict[str, str]:
    return python_environment() | {"NODE_EXTRA_CA_CERTS": str(server.authority)}


def _report(language: str, way: str, grown: dict[str, int], *, most_bytes: int) -> None:
    shown = ", ".join(f"{name} +{size / 1e6:.1f} MB" for name, size in grown.items())
    sys.stdout.write(f"sdk-check: {language}, 50 MiB {way}: {shown}\n")
    if way == "streamed" and max(grown.values()) > most_bytes:
        raise SystemExit(f"sdk-check: {language} held over {most_bytes / 1e6:.0f} MB: it does not stream")
    if way == "whole" and max(grown.values()) < BODY_BYTES:
        raise SystemExit(f"sdk-check: {language} held a body, and the measurement did not show it")
