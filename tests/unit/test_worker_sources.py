"""Updates as rows out of their blobs: every value in its place, and nothing but what was accepted."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from app.core.blobs import LocalBlobs
from app.core.errors import Unavailable
from engines.aggregation.gate import admit
from engines.aggregation.linear import weighted_mean
from engines.aggregation.rows import Streamed
from workers.sources import MOST_OPEN, BlobUpdates
from workers.tensors import BrokenTensors, write_tensors

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2)}
SIZE = 21


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


def put(blobs: LocalBlobs, values: np.ndarray, *, order: str = "abc") -> str:
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


def sample(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def test_every_piece_of_every_update_is_read_whatever_the_order_of_its_tensors(blobs: LocalBlobs) -> None:
    updates = [sample(seed) for seed in range(4)]
    orders = ("abc", "cba", "bca", "abc")
    digests = [put(blobs, one, order=order) for one, order in zip(updates, orders, strict=True)]
    with BlobUpdates(blobs, digests, SHAPES) as source:
        assert (source.clients, source.dimension) == (4, SIZE)
        for client, start in np.ndindex(4, SIZE):
            for stop in range(start + 1, SIZE + 1):
                out = np.empty(stop - start, dtype=np.float32)
                source.read(client, start, stop, out)
                assert np.array_equal(out, updates[client][start:stop])


def test_more_clients_than_files_may_be_open_are_read_alike(blobs: LocalBlobs) -> None:
    count = MOST_OPEN + 3
    digests = [put(blobs, sample(seed)) for seed in range(count)]
    with BlobUpdates(blobs, digests, SHAPES) as source:
        mean = weighted_mean(Streamed(source))
    expected = np.mean([sample(seed).astype(np.float64) for seed in range(count)], axis=0)
    assert mean == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_a_file_that_is_not_what_was_accepted_is_refused(blobs: LocalBlobs) -> None:
    fine = put(blobs, sample(1))
    other, _size = write_tensors(blobs, {"a": torch.zeros(3, 4)})
    for digest in (other, blobs.put(b"something else")):
        with pytest.raises(BrokenTensors):
            BlobUpdates(blobs, [fine, digest], SHAPES)
    with pytest.raises(Unavailable):
        BlobUpdates(blobs, [fine, "0" * 64], SHAPES)


def test_a_file_that_shrank_under_the_reader_is_refused(blobs: LocalBlobs) -> None:
    digest = put(blobs, sample(1))
    with BlobUpdates(blobs, [digest], SHAPES) as source:
        path = blobs.path(digest)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(BrokenTensors):
            source.read(0, 0, SIZE, np.empty(SIZE, dtype=np.float32))


def test_memory_does_not_grow_with_the_number_of_clients(blobs: LocalBlobs) -> None:
    """Eight and 256 updates of 1.2 MB: the peak of reading them twice grows by no more than a tenth."""
    shapes = {"x": (300_000,)}
    digests = [write_tensors(blobs, {"x": torch.full((300_000,), float(number))})[0] for number in range(8)]
    peaks = []
    for repeated in (1, 32):
        tracemalloc.start()
        with BlobUpdates(blobs, digests * repeated, shapes) as source:
            rows = admit(Streamed(source), clip_norm=None).rows
            weighted_mean(rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.1 * peaks[0]
