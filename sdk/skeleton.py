"""The training client of sdk/typescript/client.ts as its user runs it: enrolled, killed, and gone on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from client.invitation import read_invitation
from sdk.generated import BUILD
from sdk.live import Server, plan
from sdk.tools import ROOT, run
from tests.builders import TINY_MANIFEST
from tests.http.accounts import Applicant
from tests.system.driver import Silo

_LIMIT_S = 120


def check_vectors() -> None:
    """What it signs is, to the byte, what docs/wire.md's vectors hold."""
    environment = os.environ | {"DPFL_VECTORS": str(ROOT / "tests" / "vectors")}
    run(["node", "--test", BUILD / "vectors.test.js"], environment=environment)


def check_skeleton(server: Server, folder: Path) -> None:
    """Enrol by a file, take part in three rounds, two of them over a kill, and refuse a run with noise."""
    invitation, site = folder / "invitation.json", folder / "site"
    where = ("--server", server.url, "--key-file", server.admin_file, "--ca-file", server.authority)
    told = ("--org", "Klinik Köln", "--region", "eu-central-1", "-o", invitation)
    run([sys.executable, "-m", "cli.main", "client", "invite", *told, *where])
    _check_invitations(invitation, folder)
    run(["node", BUILD / "client.js", "enrol", invitation, site, "letters"])
    client_id = json.loads((site / "config.json").read_text())["client_id"]
    federation = server.federation
    federation.silos[:] = [Silo(Applicant(), client_id, server.url)]  # whose key it alone holds
    first = federation.start_run(plan(clients=1, rounds=3))
    run_id = federation.ask("GET", f"/rounds/{first}")["run_id"]
    for number, point in ((1, "prepared"), (2, "sending"), (3, None)):
        trained = None if point is None else _killed(site, point)
        sent = run(["node", BUILD / "client.js", "run", site, "--once"]).split()[-1]
        receipt = json.loads((site / "rounds" / f"{run_id}-{number}" / "receipt.json").read_text())
        if trained not in (None, sent) or receipt["sha256"] != sent:
            raise SystemExit(f"sdk-check: round {number} was trained again: {trained} became {sent}")
        round_ = federation.ask("GET", f"/runs/{run_id}/rounds")["items"][number - 1]
        if federation.await_end(round_["id"])["state"] != "published":
            raise SystemExit(f"sdk-check: round {number} was not published")
        said = "" if point is None else f" after a kill when {point}, the same bytes"
        sys.stdout.write(f"sdk-check: skeleton, round {number} published{said}\n")
    _check_noise_is_refused(server, site)


def _check_invitations(invitation: Path, folder: Path) -> None:
    """One that is damaged, and one that is pinned to another key, bring no client about."""
    damaged, misled = folder / "damaged.json", folder / "misled.json"
    damaged.write_text(invitation.read_text().replace("eu-central-1", "eu-central-2"))
    wrong = read_invitation(invitation).model_copy(update={"pins": [f"sha256//{'A' * 43}="]})
    wrong.write(misled)
    for file, expected in ((damaged, "is damaged: region"), (misled, "not the pinned server")):
        _require_refused(["enrol", str(file), str(folder / file.stem), "letters"], expected)


def _killed(site: Path, point: str) -> str:
    """Let it train and be killed; returns the digest of what it trained."""
    done = _node("killed.js", str(site), point)
    if done.returncode != -signal.SIGKILL or len(done.stdout) != 64:
        raise SystemExit(f"sdk-check: the client was not killed when {point}\n{done.stdout}{done.stderr}")
    return done.stdout


def _check_noise_is_refused(server: Server, site: Path) -> None:
    """Under trust `local` it would have to add noise, which it cannot: not a byte is sent."""
    federation = server.federation
    manifest = plan(clients=1, privacy=TINY_MANIFEST["privacy"])
    round_id = federation.start_run(manifest)
    _require_refused(["run", str(site), "--once"], "adds no noise")
    counted = federation.ask("GET", f"/rounds/{round_id}")["updates"]
    if any(counted.values()):
        raise SystemExit(f"sdk-check: something was sent under trust local: {counted}")
    sys.stdout.write("sdk-check: skeleton, a run under trust local is refused\n")


def _require_refused(words: list[str], expected: str) -> None:
    done = _node("client.js", *words)
    if done.returncode != 1 or expected not in done.stderr:
        raise SystemExit(f"sdk-check: `{' '.join(words)}` was not refused: {done.stdout}{done.stderr}")


def _node(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a compiled script that may fail."""
    command = ["node", str(BUILD / script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
