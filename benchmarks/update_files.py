"""The streaming mean beside NumPy's and PyTorch's own means of a stack, on the same update files.

Each way runs in its own process, so that its peak memory is its own. `python -m benchmarks.update_files`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.report import goal, report
from engines.aggregation.mean import StreamingMean

UPDATES, ELEMENTS, REPEATS = 24, 4_194_304, 3
NAME = "update"
MIB = 2**20


def ours(paths: list[Path], weights: list[float]) -> Tensor:
    """Read one file after another into the streaming mean."""
    running = StreamingMean({NAME: (ELEMENTS,)})
    for path, weight in zip(paths, weights, strict=True):
        running.add(load_file(path), weight=weight)
    return running.result()[NAME]


def numpy_average(paths: list[Path], weights: list[float]) -> Tensor:
    """Stack all updates and call `numpy.average`."""
    stack = np.stack([load_file(path)[NAME].numpy() for path in paths])
    return torch.from_numpy(np.average(stack, axis=0, weights=weights).astype(np.float32))


def torch_stack(paths: list[Path], weights: list[float]) -> Tensor:
    """Stack all updates and multiply by the normalised weights, in float32."""
    stack = torch.stack([load_file(path)[NAME] for path in paths])
    shares = torch.tensor(weights, dtype=torch.float32)
    return (shares / shares.sum()) @ stack


WAYS: dict[str, Callable[[list[Path], list[float]], Tensor]] = {
    "ours": ours,
    "numpy.average": numpy_average,
    "torch stack": torch_stack,
}


def write_updates(folder: Path) -> None:
    """Write the update files and their exact mean, accumulated in float64 from the largest weight down."""
    generator = torch.Generator().manual_seed(1)
    exact = torch.zeros(ELEMENTS, dtype=torch.float64)
    for number in range(UPDATES):
        update = torch.randn(ELEMENTS, generator=generator) * 1e-3
        save_file({NAME: update}, folder / f"{number:02}.safetensors")
        exact += update.double() * weights()[number]
    save_file({NAME: exact / sum(weights())}, folder / "exact")


def weights() -> list[float]:
    """Give the updates sizes as of silos of 100 to 3,000 records."""
    return [100.0 + 125.0 * number for number in range(UPDATES)]


def run_once(way: str, folder: Path) -> None:
    """Child process: average, and print seconds, extra peak memory and error as JSON."""
    torch.set_num_threads(1)
    paths = sorted(folder.glob("*.safetensors"))
    load_file(paths[0])  # imports and the first pages are not what is compared
    before = memory_bytes("VmRSS")
    started = time.perf_counter()
    mean = WAYS[way](paths, weights())
    seconds = time.perf_counter() - started
    peak = memory_bytes("VmHWM") - before
    exact = load_file(folder / "exact")[NAME]
    error = float((mean.double() - exact).norm() / exact.norm())
    print(json.dumps({"seconds": seconds, "peak_mib": peak / MIB, "relative_error": error}))


def memory_bytes(field: str) -> int:
    """Read a memory figure of this process from Linux, or the peak from elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure() -> None:
    """Run the ways in turn, and report medians."""
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        write_updates(Path(folder))
        for _ in range(REPEATS):
            for way, runs in taken.items():
                command = [sys.executable, "-m", "benchmarks.update_files", "--way", way, "--folder", folder]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(answer.stdout))
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for way, runs in taken.items()
    }
    rows = [
        {"way": way} | {key: f"{value:.3g}" for key, value in row.items()} for way, row in medians.items()
    ]
    mine = medians["ours"]
    goals = [
        goal("time over numpy.average", mine["seconds"] / medians["numpy.average"]["seconds"], at_most=1.0),
        goal("time over torch stack", mine["seconds"] / medians["torch stack"]["seconds"], at_most=1.0),
        goal("peak memory in adapters", mine["peak_mib"] / (ELEMENTS * 4 / MIB), at_most=8.0),
    ]
    report("update_files", rows, goals)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=sorted(WAYS))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.way:
        run_once(arguments.way, arguments.folder)
    else:
        measure()
