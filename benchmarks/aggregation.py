"""Robust rules beside byzfl's on the same updates in memory, with what the machine could do at best.

Each measurement runs in its own process on one thread; seconds are processor seconds, and memory is the peak
over what the process held before. `python -m benchmarks.aggregation` is small; `--goal` is 100 updates of 4.2
million values, as the goals are meant. The peer comes from `make bench-setup`; without it only ours is shown.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import goal, report
from benchmarks.update_files import MIB, memory_bytes
from engines.aggregation.gate import admit
from engines.aggregation.rows import Held
from engines.aggregation.rules import RULES, Setting, aggregate

PEER = Path(__file__).resolve().parents[1] / ".venv-peers" / "byzfl"
GOAL_SIZE = (100, 4_200_000)
TIMES_FASTER = {"median": 10.0, "trimmed_mean": 3.0, "multi_krum": 15.0, "geometric_median": 4.0}
COMPARED = ("mean", *TIMES_FASTER)
GATE, DEFAULT = "gate", "gate, nearest neighbours, trimmed mean"
OURS, BYZFL, FLOOR = "ours", "byzfl", "floor"
WARM_COLUMNS = 100_000

Matrix = NDArray[np.float32]


def ours(rule: str, faulty: int) -> Callable[[Matrix], object]:
    """Our rule alone, as the peer's is; the gate in front of it is a row of its own."""
    told = Setting(faulty=0 if rule == "mean" else faulty)
    if rule == GATE:
        return lambda updates: admit(Held(updates), clip_norm=1e6)
    if rule == DEFAULT:
        return lambda updates: aggregate(Held(updates), told)
    return lambda updates: RULES[rule].apply(Held(updates), told).values


def byzfl(rule: str, faulty: int) -> Callable[[Matrix], object]:
    """byzfl's rule on NumPy arrays; its package, which imports plotting, is replaced by an empty one."""
    package = types.ModuleType("byzfl")
    package.__path__ = [str(PEER / "byzfl")]
    sys.modules["byzfl"] = package
    from byzfl.aggregators import aggregators  # type: ignore[import-not-found]  # noqa: PLC0415

    rules: dict[str, Callable[[], Any]] = {
        "mean": aggregators.Average,
        "median": aggregators.Median,
        "trimmed_mean": lambda: aggregators.TrMean(f=faulty),
        "multi_krum": lambda: aggregators.MultiKrum(f=faulty),
        "geometric_median": lambda: aggregators.GeometricMedian(nu=0.1, T=3),  # its default: not converged
    }
    return rules[rule]()  # type: ignore[no-any-return]


def read_floor(updates: Matrix) -> float:
    """Seconds to read all updates once: the fastest of three passes that do next to nothing."""
    return min(_seconds(lambda: [float(row.max()) for row in updates]) for _ in range(3))


def product_floor(updates: Matrix) -> float:
    """Seconds of the products between all pairs, in float32, by the machine's own matrix multiplication."""
    block = np.ascontiguousarray(updates[:, :4096])
    other = block.copy()
    seconds = min(_seconds(lambda: [block @ other.T for _ in range(5)]) for _ in range(3)) / 5
    return seconds * updates.shape[1] / block.shape[1]


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def run_once(way: str, rule: str, path: Path, clients: int) -> None:
    """Child process: load, warm up on a few columns, run once, and print the figures as JSON."""
    updates: Matrix = np.fromfile(path, dtype=np.float32).reshape(clients, -1)
    if way == FLOOR:
        seconds = (
            product_floor(updates) if rule in ("multi_krum", "geometric_median") else read_floor(updates)
        )
        print(json.dumps({"cpu_s": seconds, "extra_mb": 0.0}))
        return
    work = (ours if way == OURS else byzfl)(rule, clients // 10)
    work(np.ascontiguousarray(updates[:, :WARM_COLUMNS]))  # imports and compilation are not what is compared
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # the peak so far, which the warming up may have set
    before = memory_bytes("VmRSS")
    seconds = _seconds(lambda: work(updates))
    print(json.dumps({"cpu_s": seconds, "extra_mb": (memory_bytes("VmHWM") - before) / MIB}))


def measure(clients: int, dimension: int, repeats: int) -> None:
    """Run all ways of all rules in turn, and report medians."""
    ways = [FLOOR, OURS, *([BYZFL] if PEER.is_dir() else [])]
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "updates"
        generator = np.random.default_rng(1)
        (generator.standard_normal((clients, dimension), dtype=np.float32) * np.float32(1e-3)).tofile(path)
        for _ in range(repeats):
            for rule, way in [*itertools.product(COMPARED, ways), (GATE, OURS), (DEFAULT, OURS)]:
                command = [sys.executable, "-m", "benchmarks.aggregation", "--way", way, "--rule", rule]
                command += ["--path", str(path), "--n", str(clients)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                taken.setdefault((rule, way), []).append(json.loads(answer.stdout))
    medians = {
        key: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for key, runs in taken.items()
    }
    rows = [
        {"rule": rule, "way": way, "n": clients, "d": dimension}
        | {name: f"{value:.3g}" for name, value in row.items()}
        for (rule, way), row in medians.items()
    ]
    report("aggregation", rows, goals(medians))


def goals(medians: dict[tuple[str, str], dict[str, float]]) -> list[dict[str, Any]]:
    """State the goals as ratios of what was measured side by side."""
    stated = [
        goal(
            "mean_over_floor", medians["mean", OURS]["cpu_s"] / medians["mean", FLOOR]["cpu_s"], at_most=1.5
        ),
        goal(
            "extra_memory_mb",
            max(row["extra_mb"] for (_, way), row in medians.items() if way == OURS),
            at_most=64.0,
        ),
    ]
    for rule, times in TIMES_FASTER.items():
        if (rule, BYZFL) in medians:
            ratio = medians[rule, BYZFL]["cpu_s"] / medians[rule, OURS]["cpu_s"]
            stated.append(goal(f"{rule}_vs_byzfl", ratio, at_least=times))
    return stated


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--d", type=int, default=200_000)
    parser.add_argument("--goal", action="store_true", help="the size that the goals are meant for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=(OURS, BYZFL, FLOOR), help=argparse.SUPPRESS)
    parser.add_argument("--rule", choices=(*COMPARED, GATE, DEFAULT), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        run_once(arguments.way, arguments.rule, arguments.path, arguments.n)
    else:
        measure(*(GOAL_SIZE if arguments.goal else (arguments.n, arguments.d)), arguments.repeats)
