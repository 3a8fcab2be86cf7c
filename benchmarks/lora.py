"""The best pair of a rank from ten clients, through the QR core, beside an SVD of the dense target.

One weight of 4096 x 4096, ten clients of rank 8, float64, one thread, CPU seconds. The peer is what
FlexLoRA's own code does: multiply out, add, and decompose the whole matrix. `python -m benchmarks.lora`.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.report import goal, report
from engines.lora import flexlora
from engines.lora.cohort import Contribution, Weighted, by_module
from engines.lora.factors import Pair, dense
from engines.lora.spectrum import cut

WIDTH, CLIENTS, RANK, ALPHA, REPEATS, DENSE_REPEATS = 4096, 10, 8, 16.0, 7, 1
MODULE = "query"


def contributions() -> list[Contribution]:
    """Clients of equal weight with independent factors."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(CLIENTS):
        b = torch.randn(WIDTH, RANK, generator=generator, dtype=torch.float64)
        a = torch.randn(RANK, WIDTH, generator=generator, dtype=torch.float64)
        made.append(Contribution(f"{number:02}", 1.0, {MODULE: Pair(b, a, ALPHA / RANK)}))
    return made


def ours(weighted: Sequence[Weighted]) -> tuple[Tensor, Pair]:
    """Singular values, and the pair of the run's rank."""
    spectrum = flexlora.combine(weighted)
    return spectrum.values, cut(spectrum, RANK, scale=ALPHA / RANK)[0]


def dense_svd(weighted: Sequence[Weighted]) -> tuple[Tensor, Pair]:
    """Multiply out, decompose, cut."""
    target = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for one in weighted:
        target += one.share * one.pair.scale * (one.pair.b @ one.pair.a)
    u, values, vt = torch.linalg.svd(target, full_matrices=False)
    return values, Pair(u[:, :RANK] * (values[:RANK] * RANK / ALPHA), vt[:RANK], ALPHA / RANK)


def seconds_of(
    way: Callable[[Sequence[Weighted]], tuple[Tensor, Pair]], weighted: Sequence[Weighted], *, repeats: int
) -> tuple[float, Tensor, Pair]:
    """Median CPU seconds, with the last result."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        values, pair = way(weighted)
        taken.append(time.process_time() - started)
    return statistics.median(taken), values, pair


def measure() -> None:
    """Run both, compare what they found, and report."""
    torch.set_num_threads(1)
    weighted = by_module(contributions())[MODULE]
    ours(weighted)  # the library's first call is not what is compared
    mine, values, pair = seconds_of(ours, weighted, repeats=REPEATS)
    theirs, all_values, best = seconds_of(dense_svd, weighted, repeats=DENSE_REPEATS)
    off = float((values - all_values[: len(values)]).abs().max() / all_values[0])
    apart = float((dense(pair) - dense(best)).norm() / dense(best).norm())
    shape = {"d": WIDTH, "k": WIDTH, "n": CLIENTS, "rank": RANK}
    rows = [
        {"way": "ours, QR core"} | shape | {"cpu_seconds": f"{mine:.3g}"},
        {"way": "dense SVD"} | shape | {"cpu_seconds": f"{theirs:.3g}"},
    ]
    goals = [
        goal("flexlora_vs_dense_svd", theirs / mine, at_least=500.0),
        goal("largest difference of singular values", off, at_most=1e-10),
        goal("difference of the pairs' products", apart, at_most=1e-10),
    ]
    report("lora", rows, goals)


if __name__ == "__main__":
    measure()
