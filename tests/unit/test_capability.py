"""What the server concludes from a declared machine; figures by the formula in `assess`, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.identity.capability import Capability, assess

GIB = 1024**3


@pytest.mark.parametrize(
    ("memory_gib", "cpu_count", "accelerator", "tier", "max_rank"),
    [
        (1, 4, None, "insufficient", 0),  # 0.6 GiB are fewer than the fixed 1 GiB
        (1.7, 4, None, "constrained", 1),  # 1.02 GiB leave 20.5 MiB: 1.1 units of 18 MiB
        (2, 4, None, "standard", 8),  # 0.2 GiB = 204.8 MiB = 11.4 units
        (4, 1, None, "constrained", 64),  # 1.4 GiB = 79.6 units, but one core
        (4, 1, "mps", "accelerated", 64),
        (8, 4, None, "standard", 64),
        (80, 16, "NVIDIA H100", "accelerated", 64),
    ],
)
def test_the_conclusion_follows_the_formula(
    memory_gib: float, cpu_count: int, accelerator: str | None, tier: str, max_rank: int
) -> None:
    machine = Capability(memory_bytes=int(memory_gib * GIB), cpu_count=cpu_count, accelerator=accelerator)
    found = assess(machine)
    assert (found.tier, found.max_rank) == (tier, max_rank)


def test_expected_upload_time_is_bytes_over_speed() -> None:
    machine = Capability(memory_bytes=8 * GIB, cpu_count=2, upload_bytes_per_s=1_000_000.0)
    assert assess(machine).expected_upload_s == pytest.approx(4 * 36_864 * 64 / 1e6, abs=1e-3)
    assert assess(Capability(memory_bytes=8 * GIB, cpu_count=2)).expected_upload_s is None


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        (None, "none"),
        ("cpu", "none"),
        ("cuda:0", "cuda"),
        ("AMD MI300", "rocm"),
        ("Apple M3", "mps"),
        ("TPU", "other"),
    ],
)
def test_accelerators_are_told_apart_by_kind(declared: str | None, kind: str) -> None:
    machine = Capability(memory_bytes=GIB, cpu_count=1, accelerator=declared)
    assert assess(machine).accelerator == kind


@given(st.integers(1, 2**50), st.integers(1, 4096))
def test_more_memory_never_means_a_smaller_rank(memory_bytes: int, cpu_count: int) -> None:
    small = assess(Capability(memory_bytes=memory_bytes, cpu_count=cpu_count)).max_rank
    large = assess(Capability(memory_bytes=min(2**50, memory_bytes * 2), cpu_count=cpu_count)).max_rank
    assert small <= large <= 64
    assert small == 0 or small & (small - 1) == 0
