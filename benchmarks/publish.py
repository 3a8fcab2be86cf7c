"""Seconds from the last of 8 uploads to the published release, through the whole stack over HTTP.

The dispatcher ticks every 30 s here: a round that is published sooner was carried by notifications alone, so
a polling sleep on the path would show at once. `python -m benchmarks.publish`.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import goal, report
from cli.embedded.stack import running_stack
from tests.builders import tiny_manifest
from tests.system.driver import NO_DP, Federation, random_updates

SILOS, ROUNDS, WARM_UP, TICK_S = 8, 12, 2, 30.0
LAYER = "base_model.model.bert.encoder.layer.5.attention.self"


def manifest() -> dict[str, Any]:
    """A plan with the demo's adapter: r = 8 on query and value of one layer, and a head; 6,529 parameters."""
    tensors: list[dict[str, Any]] = [
        {"name": "base_model.model.classifier.weight", "shape": [1, 384], "trained": True},
        {"name": "base_model.model.classifier.bias", "shape": [1], "trained": True},
    ]
    for module in ("query", "value"):
        tensors += [
            {"name": f"{LAYER}.{module}.lora_A.weight", "shape": [8, 384], "trained": False},
            {"name": f"{LAYER}.{module}.lora_B.weight", "shape": [384, 8], "trained": True},
        ]
    return tiny_manifest(
        privacy=NO_DP,
        lora={"rank": 8, "alpha": 8.0, "target_modules": ["query", "value"]},
        quorum={"min_updates": SILOS, "max_updates": SILOS},
        rounds=ROUNDS,
    ) | {"tensors": sorted(tensors, key=lambda tensor: str(tensor["name"]))}


def next_round(federation: Federation, run_id: str, number: int) -> str:
    """The id of a run's round, which the publication of the one before has opened."""
    return str(federation.ask("GET", f"/runs/{run_id}/rounds")["items"][number]["id"])


def measure(federation: Federation) -> list[float]:
    """Seconds for each round, from the answer to the last upload until a waiting reader sees it published."""
    plan = manifest()
    first = federation.start_run(plan)
    run_id = str(federation.ask("GET", f"/rounds/{first}")["run_id"])
    seconds = []
    for number in range(ROUNDS):
        round_id = next_round(federation, run_id, number)
        federation.send_all(round_id, random_updates(SILOS, seed=number, manifest=plan))
        began = time.perf_counter()
        if federation.await_end(round_id)["state"] != "published":
            raise SystemExit("a round was not published")
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Start a stack in a temporary folder, measure, stop it."""
    servers = {"DPFL_TRUSTS": "local,none", "DPFL_TICK_S": str(TICK_S), "DPFL_RESEND_S": str(2 * TICK_S)}
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder), environment=servers) as stack:
        key = json.loads((Path(folder) / "admin.json").read_text())["api_key"]
        federation = Federation(stack.url, api_key=key)
        federation.enrol(SILOS)
        seconds = measure(federation)[WARM_UP:]
        federation.close()
    median = statistics.median(seconds)
    row = {
        "updates": SILOS,
        "parameters": 6529,
        "rounds": len(seconds),
        "median_s": round(median, 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }
    report("publish", [row], [goal("median as a share of the tick", round(median / TICK_S, 4), at_most=0.05)])


if __name__ == "__main__":
    main()
