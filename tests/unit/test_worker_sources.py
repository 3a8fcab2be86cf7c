"""Updates as rows out of their blobs: every value in its place, and nothing but what was accepted."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from app.core.blobs import LocalStore
from app.core.envelope import CHUNK_LOG2, Opener
from app.custody.blobs import TenantBlobs
from app.custody.errors import BlobDamaged, BlobGone
from app.runs.sending import DTYPES, wire_tensors
from app.updates.wire import Expected
from client.update_file import update_file
from engines.aggregation import kernels, rows
from engines.aggregation.gate import admit, row_norms
from engines.aggregation.linear import weighted_mean
from engines.aggregation.rows import Streamed
from tests.blobs import memory_blobs
from workers import sources
from workers.sources import BlobUpdates
from workers.tensors import BrokenTensors, write_tensors

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2)}
FLOAT32 = wire_tensors(SHAPES.items(), "float32")
SIZE = 21


@pytest.fixture
def blobs(tmp_path: Path) -> TenantBlobs:
    return memory_blobs(tmp_path)


def put(blobs: TenantBlobs, values: np.ndarray, *, order: str = "abc") -> str:
    """A safetensors file whose tensors lie in this order."""
    parts = dict(zip(SHAPES, np.split(values.astype("<f4"), [12, 17]), strict=True))
    header, offset = {}, 0
    for name in order:
        end = offset + parts[name].nbytes
        header[name] = {"dtype": "F32", "shape": SHAPES[name], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    body = b"".join(parts[name].tobytes() for name in order)
    return blobs.put(len(text).to_bytes(8, "little") + text + body)


def opened(
    blobs: TenantBlobs, digests: Sequence[str], expected: Expected, *, sent: Sequence[Expected] = ()
) -> BlobUpdates:
    files = blobs.blobs.locate([blobs.ref(digest) for digest in digests])
    return BlobUpdates(blobs.blobs, files, expected, sent=sent)


def sample(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def test_every_piece_of_every_update_is_read_whatever_the_order_of_its_tensors(blobs: TenantBlobs) -> None:
    updates = [sample(seed) for seed in range(4)]
    orders = ("abc", "cba", "bca", "abc")
    digests = [put(blobs, one, order=order) for one, order in zip(updates, orders, strict=True)]
    with opened(blobs, digests, FLOAT32) as source:
        assert (source.clients, source.dimension) == (4, SIZE)
        for client, start in np.ndindex(4, SIZE):
            for stop in range(start + 1, SIZE + 1):
                out = np.empty(stop - start, dtype=np.float32)
                source.read(client, start, stop, out)
                assert np.array_equal(out, updates[client][start:stop])


def test_no_sealed_chunk_is_opened_twice_in_one_reading(
    blobs: TenantBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors end where they like: pieces end where the chunks of the files do."""
    clients, shapes, opens = 3, {"a": (40_001,), "b": (60_010,)}, 0
    values = {name: torch.ones(shape) for name, shape in shapes.items()}
    digests = [write_tensors(blobs, {name: k * one for name, one in values.items()})[0] for k in (1, 2, 3)]
    original = Opener._read_chunks

    def counting(self: Opener, first: int, after: int, skip: int, out: memoryview) -> None:
        nonlocal opens
        opens += after - first
        original(self, first, after, skip, out)

    with opened(blobs, digests, wire_tensors(shapes.items(), "float32")) as source:
        monkeypatch.setattr(Opener, "_read_chunks", counting)
        monkeypatch.setattr(rows, "SLAB_BYTES", clients * 110_000)
        assert (weighted_mean(Streamed(source)) == 2.0).all()
    chunks = -(-(sum(4 * size for (size,) in shapes.values()) + 200) // (1 << CHUNK_LOG2))
    assert opens == clients * chunks + clients  # and each has one chunk in which one tensor follows the other


def test_more_clients_than_files_may_be_open_are_read_alike(
    blobs: TenantBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_OPEN", 4)
    count = 7
    digests = [put(blobs, sample(seed)) for seed in range(count)]
    with opened(blobs, digests, FLOAT32) as source:
        mean = weighted_mean(Streamed(source))
    expected = np.mean([sample(seed).astype(np.float64) for seed in range(count)], axis=0)
    assert mean == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_as_many_files_stay_open_as_the_limits_of_the_process_allow() -> None:
    """In a process of its own: the hard limit is lowered for good. 256, or half, are left to the rest."""
    asked = """
import resource
from workers.sources import may_open

answers = []
for soft, hard in ((300, 2000), (300, 300), (200, 200)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    answers += [may_open(10), may_open(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
    answers += [may_open(1000, besides=200)]
print(answers)
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([10, 1000, 1256, 1000, 10, 150, 300, 0, 10, 100, 200, 0])


def test_a_source_counts_what_others_keep_open(blobs: TenantBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "may_open", lambda files, besides: max(0, 5 - besides))
    digests = [put(blobs, sample(seed)) for seed in range(3)]
    with opened(blobs, digests, FLOAT32), opened(blobs, digests, FLOAT32) as second:
        assert (BlobUpdates.open_in_all, len(second._open)) == (5, 2)
        assert np.array_equal(weighted_mean(Streamed(second)), weighted_mean(Streamed(second)))
    assert BlobUpdates.open_in_all == 0


def test_a_file_that_is_not_what_was_accepted_is_refused(blobs: TenantBlobs) -> None:
    fine = put(blobs, sample(1))
    other, _size = write_tensors(blobs, {"a": torch.zeros(3, 4)})
    for digest in (other, blobs.put(b"something else")):
        with pytest.raises(BrokenTensors):
            opened(blobs, [fine, digest], FLOAT32)
    with pytest.raises(BlobGone):
        opened(blobs, [fine, "0" * 64], FLOAT32)


def test_a_file_that_shrank_under_the_reader_is_refused(blobs: TenantBlobs) -> None:
    digest, store = put(blobs, sample(1)), blobs.blobs.store
    assert isinstance(store, LocalStore)
    with opened(blobs, [digest], FLOAT32) as source:
        (path,) = store.folder.glob("??/*")
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(BlobDamaged):
            source.read(0, 0, SIZE, np.empty(SIZE, dtype=np.float32))


def test_memory_does_not_grow_with_the_number_of_clients(
    blobs: TenantBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight and 128 updates of 2.4 MB: the peak of reading them twice grows by no more than a tenth.

    The compiler of the loops is kept out of the peak.
    """
    monkeypatch.setattr(kernels, "COMPILED_AFTER", 1 << 40)
    shapes = {"x": (600_000,)}
    digests = [write_tensors(blobs, {"x": torch.full((600_000,), float(number))})[0] for number in range(8)]
    peaks = []
    for repeated in (1, 16):
        tracemalloc.start()
        with opened(blobs, digests * repeated, wire_tensors(shapes.items(), "float32")) as source:
            rows = admit(Streamed(source), clip_norm=None).rows
            weighted_mean(rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.1 * peaks[0]


@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_what_a_client_sends_in_any_wire_dtype_is_read_as_float32_piece_by_piece(
    blobs: TenantBlobs, wire_dtype: Any
) -> None:
    """Against the safetensors library and torch, which read the same file."""
    expected = wire_tensors(SHAPES.items(), wire_dtype)
    updates = [sample(seed) * 10.0 ** (seed - 1) for seed in range(3)]
    files = [update_file(tensors_of(one), wire_dtype=wire_dtype) for one in updates]
    with opened(blobs, [blobs.put(file) for file in files], expected) as source:
        assert (source.dimension, source.dtype) == (SIZE, np.float32)
        for client, file in enumerate(files):
            wanted = read_by_torch(file)
            for start, stop in ((0, SIZE), (0, 1), (3, 14), (11, 18), (SIZE - 1, SIZE)):
                out = np.empty(stop - start, dtype=np.float32)
                source.read(client, start, stop, out)
                assert np.array_equal(out, wanted[start:stop])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (2, 3), (3, 2)])
@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_what_a_smaller_rank_sends_is_read_as_the_first_corner_piece_by_piece(
    blobs: TenantBlobs, wire_dtype: Any, rows: int, columns: int
) -> None:
    """Against the same file read by torch, and put into zeros; beside a file of the whole shape."""
    smaller = {"a": (rows, columns), "b": (5,), "c": (1, 2)}
    generator = torch.Generator().manual_seed(4)
    files = [
        update_file(
            {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
            wire_dtype=wire_dtype,
        )
        for shapes in (SHAPES, smaller)
    ]
    cut, wanted = np.split(read_by_torch(files[1]), [rows * columns, -2]), np.zeros(SIZE, dtype=np.float32)
    wanted[:12].reshape(3, 4)[:rows, :columns] = cut[0].reshape(rows, columns)
    wanted[12:17], wanted[17:19] = cut[1], cut[2]
    whole = [read_by_torch(files[0]), wanted]
    sent = [wire_tensors(shapes.items(), wire_dtype) for shapes in (SHAPES, smaller)]
    with opened(blobs, [blobs.put(file) for file in files], sent[0], sent=sent) as source:
        for start, stop in np.ndindex(SIZE, SIZE + 1):
            for client in (0, 1) if start < stop else ():
                out = np.empty(stop - start, dtype=np.float32)
                source.read(client, start, stop, out)
                assert np.array_equal(out, whole[client][start:stop])


@pytest.mark.parametrize(
    ("wire_dtype", "step"), [("float32", 0.0), ("float16", 2.0**-11), ("bfloat16", 2.0**-8), ("int8", 0.5)]
)
def test_rounding_is_at_most_half_a_step(blobs: TenantBlobs, wire_dtype: Any, step: float) -> None:
    values = sample(5)
    digest = blobs.put(update_file(tensors_of(values), wire_dtype=wire_dtype))
    out = np.empty(SIZE, dtype=np.float32)
    with opened(blobs, [digest], wire_tensors(SHAPES.items(), wire_dtype)) as source:
        source.read(0, 0, SIZE, out)
    for part, sent in zip(np.split(values, [12, 17]), np.split(out, [12, 17]), strict=True):
        most = np.abs(part).max() / 127 if wire_dtype == "int8" else np.abs(part)
        assert (np.abs(sent - part) <= step * most * (1 + 1e-6)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_what_is_not_finite_on_the_wire_is_not_finite_when_read(
    blobs: TenantBlobs, wire_dtype: Any, bad: float
) -> None:
    """Under int8 only a scale can be so; a finite one may still overflow float32."""
    expected = wire_tensors(SHAPES.items(), wire_dtype)
    sent = load(update_file(tensors_of(sample(2)), wire_dtype=wire_dtype))
    name = "b.scale" if wire_dtype == "int8" else "b"
    sent[name][0] = bad
    with opened(blobs, [blobs.put(save(sent))], expected) as source:
        assert not np.isfinite(row_norms(Streamed(source))).any()


def test_a_scale_that_overflows_is_not_finite(blobs: TenantBlobs) -> None:
    sent = load(update_file(tensors_of(sample(2)), wire_dtype="int8"))
    sent["b.scale"][0] = 3e38
    with opened(blobs, [blobs.put(save(sent))], wire_tensors(SHAPES.items(), "int8")) as source:
        assert not np.isfinite(row_norms(Streamed(source))).any()


@pytest.mark.parametrize("wire_dtype", ["float16", "bfloat16"])
def test_a_thousand_narrow_ones_are_added_wide(blobs: TenantBlobs, wire_dtype: Any) -> None:
    """In bfloat16 itself a sum of ones ends at 256, in float16 at 2048."""
    digest = blobs.put(update_file(tensors_of(np.ones(SIZE, dtype=np.float32)), wire_dtype=wire_dtype))
    with opened(blobs, [digest] * 1000, wire_tensors(SHAPES.items(), wire_dtype)) as source:
        assert np.array_equal(weighted_mean(Streamed(source)), np.ones(SIZE, dtype=np.float32))


def test_large_narrow_values_do_not_overflow_in_a_mean(blobs: TenantBlobs) -> None:
    """60000 in float16, a hundred times: their sum is over the type's range, their mean is not."""
    values = np.full(SIZE, 60_000.0, dtype=np.float32)
    digest = blobs.put(update_file(tensors_of(values), wire_dtype="float16"))
    with opened(blobs, [digest] * 100, wire_tensors(SHAPES.items(), "float16")) as source:
        assert np.array_equal(weighted_mean(Streamed(source)), values)


def tensors_of(values: np.ndarray) -> dict[str, torch.Tensor]:
    parts = np.split(values.astype(np.float32), [12, 17])
    return {
        name: torch.from_numpy(part.copy()).reshape(SHAPES[name])
        for name, part in zip(SHAPES, parts, strict=True)
    }


def read_by_torch(file: bytes) -> np.ndarray:
    held = load(file)
    parts = []
    for name in SHAPES:
        wide = held[name].to(torch.float32)
        parts.append((wide * held[f"{name}.scale"] if f"{name}.scale" in held else wide).reshape(-1))
    return torch.cat(parts).numpy()
