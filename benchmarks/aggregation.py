"""Robust rules beside three peers' on the same updates, and what the machine could do at best.

Each measurement runs in its own process on one thread; seconds are processor seconds, and memory is the peak
over what the process held before. `python -m benchmarks.aggregation` is small; `--goal` is 100 updates of 4.2
million values, as the goals are meant. The peers come from `make bench-setup`; without one its rows say so.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.custody.blobs import TenantBlobs
from benchmarks import lora
from benchmarks.aggregation_ways import (
    BYZFL,
    DEFAULT,
    FILES_DEFAULT,
    FILES_MEAN,
    FLOOR,
    GATE,
    HAS,
    OPENED,
    OURS,
    PEERS,
    TENSOR,
    WAYS,
    Matrix,
    Work,
    files,
    floor,
    raw_read_floor,
    read_and_open_floor,
    seconds_of,
)
from benchmarks.report import goal, report
from benchmarks.sealed_files import remember, sealed_blobs
from benchmarks.update_files import MIB, memory_bytes
from engines.aggregation import kernels
from engines.lora.cohort import by_module
from workers.tensors import write_tensors

GOAL_SIZE = (100, 4_200_000)
TIMES_FASTER = {"median": 10.0, "trimmed_mean": 3.0, "multi_krum": 15.0, "geometric_median": 4.0}
COMPARED = ("mean", *TIMES_FASTER)
ALONE = (GATE, DEFAULT)
"""Ours without a peer's counterpart."""
IN_FILES = (FILES_MEAN, FILES_DEFAULT)
FEW, MANY, GROWING_DIMENSION = 8, 512, 600_000
"""How memory grows: the same files over and over, so that 512 of them need no more disk than 8."""
FLEXLORA = "flexlora"
WARM_COLUMNS = 100_000
QUICK_S = 4.0
"""A way that takes less is run three times, as its floor is, and its fastest run counts."""
PATIENCE_S = 600.0
"""A way that takes longer is stopped, and its row says so."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One measurement."""

    rule: str
    way: str
    clients: int
    dimension: int


def cases(clients: int, dimension: int) -> Iterator[Case]:
    """What is measured in turn; the ways of one rule after one another."""
    for rule in COMPARED:
        yield Case(rule, FLOOR, clients, dimension)
        yield Case(rule, OURS, clients, dimension)
        for peer, rules in HAS.items():
            if rule in rules:
                yield Case(rule, peer, clients, dimension)
    for rule in ALONE:
        yield Case(rule, OURS, clients, dimension)
    yield Case(FILES_MEAN, FLOOR, clients, dimension)
    yield Case(FILES_MEAN, OPENED, clients, dimension)
    yield Case(FILES_MEAN, OURS, clients, dimension)
    for rule in IN_FILES:
        for count in (FEW, MANY):
            yield Case(rule, OURS, count, min(dimension, GROWING_DIMENSION))


def run_once(case: Case, folder: Path) -> None:
    """Child process: load, warm up on a few columns, run, and print the figures as JSON."""
    torch.set_num_threads(1)
    kernels.COMPILED_AFTER = -1  # as in a worker that has seen some rounds
    if case.rule in IN_FILES:
        digests = _digests(folder, case)
        if case.way in (FLOOR, OPENED):
            floor_of = raw_read_floor if case.way == FLOOR else read_and_open_floor
            _say(floor_of(folder, digests), 0.0)
            return
        _measure(_on_files(case, folder, digests[: min(case.clients, FEW)]), _on_files(case, folder, digests))
        return
    updates: Matrix = np.fromfile(folder / "matrix", dtype=np.float32).reshape(case.clients, -1)
    if case.way == FLOOR:
        _say(floor(case.rule, updates), 0.0)
        return
    way, faulty = WAYS[case.way], case.clients // 10
    few = np.ascontiguousarray(updates[:, :WARM_COLUMNS])
    _measure(way(case.rule, faulty, few), way(case.rule, faulty, updates))


def _on_files(case: Case, folder: Path, digests: list[str]) -> Work:
    return files(case.rule, len(digests) // 10, folder, digests, dimension=case.dimension)


def _measure(warm: Work, work: Work) -> None:
    warm()  # imports and compilation are not what is compared
    del warm
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what was freed, the allocator keeps, and would use again unseen
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # the peak so far, which the warming up may have set
    before = memory_bytes("VmRSS")
    seconds = seconds_of(work)
    extra_mb = (memory_bytes("VmHWM") - before) / MIB
    if seconds < QUICK_S:  # the first run also pays for the machine's first look at its pages
        seconds = min(seconds, *(seconds_of(work) for _ in range(2)))
    _say(seconds, extra_mb)


def _say(seconds: float, extra_mb: float) -> None:
    print(json.dumps({"cpu_s": seconds, "extra_mb": extra_mb}))


def write_updates(folder: Path, *, clients: int, dimension: int) -> None:
    """Write the updates once as a matrix and once as the server's blobs; and short ones of a few clients."""
    generator = np.random.default_rng(1)
    updates = generator.standard_normal((clients, dimension), dtype=np.float32) * np.float32(1e-3)
    updates.tofile(folder / "matrix")
    short = min(dimension, GROWING_DIMENSION)
    blobs = sealed_blobs(folder)
    names = {
        dimension: [_blob(blobs, row) for row in updates],
        -short: [_blob(blobs, row[:short] * np.float32(2.0)) for row in updates[:FEW]],
    }
    remember(blobs, folder)
    (folder / "digests.json").write_text(json.dumps({str(key): value for key, value in names.items()}))


def _blob(blobs: TenantBlobs, row: Matrix) -> str:
    return write_tensors(blobs, {TENSOR: torch.from_numpy(np.ascontiguousarray(row))})[0]


def _digests(folder: Path, case: Case) -> list[str]:
    """As many files as the case has clients; the short ones over and over."""
    known: dict[str, list[str]] = json.loads((folder / "digests.json").read_text())
    if (long := known.get(str(case.dimension), [])) and len(long) == case.clients:
        return long
    short = known[str(-case.dimension)]
    return [short[number % len(short)] for number in range(case.clients)]


def child(case: Case, folder: Path) -> Figures | str:
    """One measurement in a process of its own; a text where there is none, and why."""
    if case.way in HAS and not (PEERS / case.way).is_dir():
        return "not installed: make bench-setup"
    command = [sys.executable, "-m", "benchmarks.aggregation", "--way", case.way, "--rule", case.rule]
    command += ["--folder", str(folder), "--n", str(case.clients), "--d", str(case.dimension)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, env=alone, check=False
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {PATIENCE_S:.0f} s"
    if answer.returncode:
        if case.way in (OURS, FLOOR, OPENED):
            raise SystemExit(answer.stderr)
        return answer.stderr.strip().splitlines()[-1][:200]
    figures: Figures = json.loads(answer.stdout.splitlines()[-1])
    return figures


def measure(clients: int, dimension: int, *, repeats: int) -> None:
    """Run everything in turn, and report medians."""
    taken: dict[Case, list[Figures]] = {}
    failed: dict[Case, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_updates(folder, clients=clients, dimension=dimension)
        for _ in range(repeats):
            for case in cases(clients, dimension):
                if case in failed:
                    continue
                found = child(case, folder)
                if isinstance(found, str):
                    failed[case] = found
                else:
                    taken.setdefault(case, []).append(found)
    medians = {
        case: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for case, runs in taken.items()
    }
    rows = [_row(case, medians.get(case), failed.get(case)) for case in cases(clients, dimension)]
    flexlora, lora_rows = _flexlora()
    report("aggregation", [*rows, *lora_rows], [*goals(medians, clients, dimension), flexlora])


def _row(case: Case, figures: Figures | None, why: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": case.rule, "way": case.way, "n": case.clients, "d": case.dimension}
    if figures is None:
        return row | {"cpu_s": None, "extra_mb": None, "why": why}
    return row | {name: float(f"{value:.3g}") for name, value in figures.items()}


def _flexlora() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The exact truncated SVD through the QR core beside the dense one (benchmarks/lora.py)."""
    torch.set_num_threads(1)
    weighted = by_module(lora.contributions())[lora.MODULE]
    lora.ours(weighted)
    mine, _, _ = lora.seconds_of(lora.ours, weighted, repeats=lora.REPEATS)
    theirs, _, _ = lora.seconds_of(lora.dense_svd, weighted, repeats=lora.DENSE_REPEATS)
    rows = [
        {
            "rule": FLEXLORA,
            "way": way,
            "n": lora.CLIENTS,
            "d": lora.WIDTH**2,
            "cpu_s": float(f"{seconds:.3g}"),
        }
        for way, seconds in ((OURS, mine), ("dense SVD", theirs))
    ]
    return goal("flexlora_vs_dense_svd", theirs / mine, at_least=500.0), rows


def goals(medians: dict[Case, Figures], clients: int, dimension: int) -> list[dict[str, Any]]:
    """State the goals as ratios of what was measured side by side."""

    def over(rule: str, above: str, below: str) -> float:
        seconds = [medians[Case(rule, way, clients, dimension)]["cpu_s"] for way in (above, below)]
        return seconds[0] / seconds[1]

    def grown(rule: str) -> float:
        short = min(dimension, GROWING_DIMENSION)
        held = (medians[Case(rule, OURS, count, short)]["extra_mb"] for count in (FEW, MANY))
        few, many = (max(1.0, extra) for extra in held)
        return many / few

    stated = [
        goal("mean_over_floor", over("mean", OURS, FLOOR), at_most=1.5),
        goal(
            "extra_memory_mb",
            max(figures["extra_mb"] for case, figures in medians.items() if case.way == OURS),
            at_most=64.0,
        ),
        goal("files_mean_over_raw_read", over(FILES_MEAN, OURS, FLOOR), at_most=2.0),
        goal("files_mean_over_read_and_open", over(FILES_MEAN, OURS, OPENED), at_most=2.0),
        goal("memory_growth_8_to_512", grown(FILES_MEAN), at_most=1.1),
        goal("memory_growth_8_to_512_of_pairs", grown(FILES_DEFAULT), at_most=1.1),
    ]
    for rule, times in TIMES_FASTER.items():
        if Case(rule, BYZFL, clients, dimension) in medians:
            stated.append(goal(f"{rule}_vs_byzfl", over(rule, BYZFL, OURS), at_least=times))
    return stated


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--d", type=int, default=200_000)
    parser.add_argument("--goal", action="store_true", help="the size that the goals are meant for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=(*WAYS, FLOOR, OPENED), help=argparse.SUPPRESS)
    parser.add_argument("--rule", choices=(*COMPARED, *ALONE, *IN_FILES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        run_once(Case(arguments.rule, arguments.way, arguments.n, arguments.d), arguments.folder)
    else:
        size = GOAL_SIZE if arguments.goal else (arguments.n, arguments.d)
        measure(*size, repeats=arguments.repeats)
