"""Sealing and opening stored bytes beside one-shot AES-256-GCM of the same library, in turn, on one thread.

The goal is of what the server does: bytes in memory sealed into a file, and a file opened into memory; raw,
the same bytes in one call into a buffer that is there already, and one write or read. The rows also have both
without files, and the one-shot call that makes its own output. Nothing is synced: that costs both alike.
`python -m benchmarks.security_encryption [--mib 64] [--repeats 7]`.
"""

import argparse
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.core.blobs import StoredFile
from app.core.envelope import HEADER_BYTES, TAG_BYTES, Opener, Place, Sealer
from benchmarks.report import goal, report

Section = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows and goals."""
MIB = 1 << 20
NONCE = bytes(12)
OURS, RAW = "sealed", "one-shot AES-256-GCM"


class _Memory:
    """Sealed bytes in memory."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.size_bytes = data, data.nbytes

    def read_at(self, offset: int, buffer: memoryview) -> int:
        piece = self._data[offset : offset + buffer.nbytes]
        buffer[: piece.nbytes] = piece
        return piece.nbytes


class Bench:
    """The same bytes for both, and what both write into."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.plain, self.out = os.urandom(size_bytes), bytearray(size_bytes)
        self.cipher = bytearray(size_bytes + TAG_BYTES)
        self.key, self.place = os.urandom(32), Place(uuid4(), uuid4(), "eu-west-1")
        self.gcm = AESGCM(self.key)
        self.ours, self.raw = folder / "ours", folder / "raw"
        self.in_memory = bytearray(2 * size_bytes + MIB)
        self.filled = 0

    def seal_file(self) -> None:
        """Ours, into a file."""
        with self.ours.open("wb") as file:
            self._seal(file.write)

    def raw_seal_file(self) -> None:
        """Raw, into a file."""
        with self.raw.open("wb") as file:
            self.gcm.encrypt_into(NONCE, self.plain, b"", self.cipher)
            file.write(self.cipher)

    def open_file(self) -> None:
        """Ours, out of a file."""
        with StoredFile(self.ours.open("rb", buffering=0)) as stored:
            Opener(stored, self.key, self.place).read_into(0, memoryview(self.out))
        self._check()

    def raw_open_file(self) -> None:
        """Raw, out of a file."""
        with self.raw.open("rb", buffering=0) as file:
            view = memoryview(self.cipher)
            while view:
                view = view[file.readinto(view) or len(view) :]
        self.gcm.decrypt_into(NONCE, self.cipher, b"", self.out)
        self._check()

    def seal_memory(self) -> None:
        """Ours, into memory."""
        self.filled = 0
        self._seal(self._take)

    def raw_seal_memory(self) -> None:
        """Raw, into memory that is there."""
        self.gcm.encrypt_into(NONCE, self.plain, b"", self.cipher)

    def raw_seal_made(self) -> None:
        """Raw, as it is mostly called: the output is made anew."""
        self.gcm.encrypt(NONCE, self.plain, b"")

    def open_memory(self) -> None:
        """Ours, out of memory."""
        sealed = _Memory(memoryview(self.in_memory)[: self.filled])
        Opener(sealed, self.key, self.place).read_into(0, memoryview(self.out))
        self._check()

    def raw_open_memory(self) -> None:
        """Raw, out of memory and into memory that is there."""
        self.gcm.decrypt_into(NONCE, self.cipher, b"", self.out)
        self._check()

    def raw_open_made(self) -> None:
        """Raw, as it is mostly called."""
        self.gcm.decrypt(NONCE, self.cipher, b"")

    def _seal(self, sink: Callable[[memoryview], object]) -> None:
        sealer = Sealer(sink, self.key, self.place)
        sealer.write(self.plain)
        sealer.finish()

    def _take(self, sealed: memoryview) -> None:
        self.in_memory[self.filled : self.filled + sealed.nbytes] = sealed
        self.filled += sealed.nbytes

    def _check(self) -> None:
        """Look at both ends: what was opened is what was sealed."""
        if self.out[:32] != self.plain[:32] or self.out[-32:] != self.plain[-32:]:
            raise SystemExit("what was opened is not what was sealed")
        self.out[:32] = self.out[-32:] = bytes(32)


Case = tuple[str, str]
"""What is done, and which way."""


def _acts(bench: Bench) -> dict[Case, Callable[[], None]]:
    return {
        ("seal to a file", OURS): bench.seal_file,
        ("seal to a file", RAW): bench.raw_seal_file,
        ("open from a file", OURS): bench.open_file,
        ("open from a file", RAW): bench.raw_open_file,
        ("seal in memory", OURS): bench.seal_memory,
        ("seal in memory", RAW): bench.raw_seal_memory,
        ("seal in memory", f"{RAW}, output made anew"): bench.raw_seal_made,
        ("open in memory", OURS): bench.open_memory,
        ("open in memory", RAW): bench.raw_open_memory,
        ("open in memory", f"{RAW}, output made anew"): bench.raw_open_made,
    }


def rows_and_goals(*, mib: int = 64, repeats: int = 7) -> Section:
    """Measure everything in turn; medians, MB a second, and the peak of what one act allocates."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), mib * MIB)
        acts = _acts(bench)
        took = _medians(acts, repeats=repeats)
        peaks = {case: _peak_mib(act) for case, act in acts.items()}
        more = bench.ours.stat().st_size - mib * MIB - HEADER_BYTES
    rows: list[dict[str, Any]] = [
        {
            "section": "encryption",
            "act": act,
            "way": way,
            "mb_per_s": round(mib * MIB / 1e6 / took[act, way]),
            "allocates_mib": round(peaks[act, way], 2),
        }
        for act, way in acts
    ]
    ratios = {act: round(took[act, RAW] / took[act, OURS], 3) for act, way in acts if way == OURS}
    rows.append({"section": "encryption", "ratios": ratios, "longer_by": round(more / (mib * MIB), 5)})
    in_files = min(ratios["seal to a file"], ratios["open from a file"])
    return rows, [
        goal("encryption_vs_raw_gcm", in_files, at_least=0.7),
        goal("encryption_allocates_mib", round(max(peaks[act, OURS] for act in ratios), 2), at_most=2.0),
    ]


def _medians(acts: dict[Case, Callable[[], None]], *, repeats: int) -> dict[Case, float]:
    seconds: dict[Case, list[float]] = {case: [] for case in acts}
    for _ in range(repeats):
        for case, act in acts.items():
            started = time.perf_counter()
            act()
            seconds[case].append(time.perf_counter() - started)
    return {case: statistics.median(runs) for case, runs in seconds.items()}


def _peak_mib(act: Callable[[], None]) -> float:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def main() -> None:
    """Print one section's report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    rows, goals = rows_and_goals(mib=asked.mib, repeats=asked.repeats)
    report("security_encryption", rows, goals)


if __name__ == "__main__":
    main()
