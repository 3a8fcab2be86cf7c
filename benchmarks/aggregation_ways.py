"""The ways that benchmarks.aggregation compares: our rules, three peers, and the machine at its best.

A way takes the updates, prepares what is not compared (imports, a peer's own containers), and returns what is
measured. Peers are used as they come: byzfl's NumPy rules; the functions behind Flower's strategies (mean and
Multi-Krum of its Message API; median and trimmed mean of `flwr.server.strategy`, by the same NumPy calls);
NVFlare's WeightedAggregationHelper, which has the mean alone.
"""

import importlib
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from app.runs.sending import wire_tensors
from benchmarks.sealed_files import sealed_blobs
from engines.aggregation.gate import admit
from engines.aggregation.linear import weighted_mean
from engines.aggregation.rows import Held, Streamed
from engines.aggregation.rules import RULES, Setting, aggregate
from workers.sources import BlobUpdates

PEERS = Path(__file__).resolve().parents[1] / ".venv-peers"
OURS, FLOOR, BYZFL, FLOWER, NVFLARE = "ours", "floor", "byzfl", "flower", "nvflare"
OPENED = "read and opened"
"""A floor of sealed files: reading them, and as much AES-256-GCM."""
GATE, DEFAULT = "gate", "gate, nearest neighbours, trimmed mean"
FILES_MEAN, FILES_DEFAULT = "mean of files", f"{DEFAULT} of files"
CHOSEN_BY_PAIRS = ("multi_krum", "geometric_median")
"""Rules whose floor is a product of matrices; that of the others is one pass over the bytes."""
RAW_READ_BYTES = 4 << 20
TENSOR = "update"

Matrix = NDArray[np.float32]
Work = Callable[[], object]
Way = Callable[[str, int, Matrix], Work]


def ours(rule: str, faulty: int, updates: Matrix) -> Work:
    """Our rule alone, as a peer's is; the gate in front of it is a row of its own."""
    told = Setting(faulty=0 if rule == "mean" else faulty)
    if rule == GATE:
        return lambda: admit(Held(updates), clip_norm=1e6)
    if rule == DEFAULT:
        return lambda: aggregate(Held(updates), told)
    return lambda: RULES[rule].apply(Held(updates), told).values


def byzfl(rule: str, faulty: int, updates: Matrix) -> Work:
    """byzfl's rule on NumPy arrays; its package, which imports plotting, is replaced by an empty one."""
    package = types.ModuleType("byzfl")
    package.__path__ = [str(PEERS / BYZFL / "byzfl")]
    sys.modules["byzfl"] = package
    aggregators = importlib.import_module("byzfl.aggregators.aggregators")
    rules: dict[str, Callable[[], Any]] = {
        "mean": aggregators.Average,
        "median": aggregators.Median,
        "trimmed_mean": lambda: aggregators.TrMean(f=faulty),
        "multi_krum": lambda: aggregators.MultiKrum(f=faulty),
        "geometric_median": lambda: aggregators.GeometricMedian(nu=0.1, T=3),  # its default: not converged
    }
    chosen = rules[rule]()
    return lambda: chosen(updates)


def flower(rule: str, faulty: int, updates: Matrix) -> Work:
    """Flower's rule on its own containers, filled before the clock starts."""
    sys.path.insert(0, str(PEERS / FLOWER))
    if rule in ("median", "trimmed_mean"):
        legacy = importlib.import_module("flwr.server.strategy.aggregate")
        results = [([row], 1) for row in updates]
        if rule == "median":
            return lambda: legacy.aggregate_median(results)
        return lambda: legacy.aggregate_trimmed_avg(results, faulty / len(updates))
    app = importlib.import_module("flwr.app")
    utilities = importlib.import_module("flwr.serverapp.strategy.strategy_utils")
    krum = importlib.import_module("flwr.serverapp.strategy.multikrum")
    records = [
        app.RecordDict(
            {
                "arrays": app.ArrayRecord({TENSOR: app.Array(row)}),
                "metrics": app.MetricRecord({"num-examples": 1}),
            }
        )
        for row in updates
    ]
    if rule == "mean":
        return lambda: utilities.aggregate_arrayrecords(records, "num-examples")
    keep = len(updates) - faulty - 2
    return lambda: utilities.aggregate_arrayrecords(
        krum.select_multikrum(records, num_malicious_nodes=faulty, num_nodes_to_select=keep), "num-examples"
    )


def nvflare(rule: str, faulty: int, updates: Matrix) -> Work:
    """NVFlare's helper, one contribution after another."""
    sys.path.insert(0, str(PEERS / NVFLARE))
    module = importlib.import_module("nvflare.app_common.aggregators.weighted_aggregation_helper")

    def mean() -> object:
        helper = module.WeightedAggregationHelper()
        for number, row in enumerate(updates):
            helper.add({TENSOR: row}, weight=1.0, contributor_name=str(number), contribution_round=0)
        return helper.get_result()

    return mean


WAYS: dict[str, Way] = {OURS: ours, BYZFL: byzfl, FLOWER: flower, NVFLARE: nvflare}
HAS: dict[str, Sequence[str]] = {
    BYZFL: ("mean", "median", "trimmed_mean", "multi_krum", "geometric_median"),
    FLOWER: ("mean", "median", "trimmed_mean", "multi_krum"),
    NVFLARE: ("mean",),
}
"""The rules that a peer has."""


def floor(rule: str, updates: Matrix) -> float:
    """Processor seconds below which no implementation of a rule can come on this machine."""
    return product_floor(updates) if rule in CHOSEN_BY_PAIRS else read_floor(updates)


def read_floor(updates: Matrix) -> float:
    """Seconds to read all updates once: the fastest of passes that do next to nothing."""
    pairs = updates[:, : updates.shape[1] // 2 * 2].view(np.int64)
    passes: tuple[Work, ...] = (
        lambda: [row.max() for row in updates],
        lambda: [np.bitwise_or.reduce(row) for row in pairs],
    )
    return min(seconds_of(once) for once in passes * 3)


def product_floor(updates: Matrix) -> float:
    """Seconds of the products between all pairs, in float32, by the machine's own matrix multiplication."""
    block = np.ascontiguousarray(updates[:, :4096])
    other = block.copy()
    seconds = min(seconds_of(lambda: [block @ other.T for _ in range(5)]) for _ in range(3)) / 5
    pieces: float = updates.shape[1] / block.shape[1]
    return seconds * pieces


def files(rule: str, faulty: int, folder: Path, digests: Sequence[str], *, dimension: int) -> Work:
    """Update files as the server reads them: headers checked, then the rule, in pieces."""
    blobs, expected = sealed_blobs(folder), wire_tensors([(TENSOR, (dimension,))], "float32")

    refs = [blobs.ref(digest) for digest in digests]

    def merged() -> object:
        with BlobUpdates(blobs.blobs, blobs.blobs.locate(refs), expected) as source:
            if rule == FILES_MEAN:
                return weighted_mean(Streamed(source))
            return aggregate(Streamed(source), Setting(faulty=faulty))

    return merged


def raw_read_floor(folder: Path, digests: Sequence[str]) -> float:
    """Seconds to read the same files, sealed as they are, once into one small buffer."""
    return _pass_over(folder, digests, lambda _read: None)


def read_and_open_floor(folder: Path, digests: Sequence[str]) -> float:
    """The same, and one call of AES-256-GCM over each buffer, which costs what opening it costs."""
    cipher, out = AESGCM(bytes(32)), bytearray(RAW_READ_BYTES + 16)
    nonce = bytes(12)

    def open_as_much(read: memoryview) -> None:
        cipher.encrypt_into(nonce, read, None, memoryview(out)[: read.nbytes + 16])

    return _pass_over(folder, digests, open_as_much)


def _pass_over(folder: Path, digests: Sequence[str], act: Callable[[memoryview], None]) -> float:
    blobs, buffer = sealed_blobs(folder), bytearray(RAW_READ_BYTES)
    located = blobs.blobs.locate([blobs.ref(digest) for digest in digests])
    paths = [folder / one.place.object_id.hex[:2] / one.place.object_id.hex for one in located]

    def read() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while size := file.readinto(buffer):
                    act(memoryview(buffer)[:size])

    return min(seconds_of(read) for _ in range(3))


def seconds_of(work: Work) -> float:
    """Processor seconds of this process, those of the kernel on its behalf included."""
    started = time.process_time()
    work()
    return time.process_time() - started
