"""Blobs in a bucket: sealed like files, put once, read in ranges, and refused when the service is gone."""

from __future__ import annotations

import random
import socket
import tracemalloc
from collections.abc import Iterator
from secrets import token_hex
from uuid import UUID

import numpy as np
import obstore
import pytest
import sqlalchemy as sa
import torch
from obstore.exceptions import AlreadyExistsError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.blobs import open_store
from app.core.buckets import PART_BYTES, BucketStore
from app.core.db import Database
from app.core.errors import Unavailable
from app.core.settings import Settings
from app.custody.blobs import Blobs
from app.custody.errors import BlobDamaged, BlobGone
from app.custody.index import DatabaseIndex
from app.custody.keys import BlobRef
from app.custody.wraps import Root
from app.runs.sending import wire_tensors
from tests.buckets import bucket_server, make_bucket
from tests.federation import Federation, sha256_of
from tests.http.test_updates import Seat
from workers.sources import BlobUpdates
from workers.tensors import open_tensors, write_tensors

A, B = UUID(int=0xA), UUID(int=0xB)
LARGE = random.Random(1).randbytes(2 * PART_BYTES + 12_345)
ROOT = Root(bytes(32), "eu-west-1")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket_server() as address:
        yield address


@pytest.fixture
def store(server: str) -> BucketStore:
    found = open_store(make_bucket(server, f"b{token_hex(8)}"))
    assert isinstance(found, BucketStore)
    return found


@pytest.fixture
def blobs(store: BucketStore, database: Database) -> Blobs:
    return Blobs(store, DatabaseIndex(database, ROOT))


def names(store: BucketStore) -> list[str]:
    return [name for part in range(256) for name, _at in store.names(f"{part:02x}")]


def stored(blobs: Blobs, ref: BlobRef) -> tuple[BucketStore, str]:
    (located,) = blobs.locate([ref])
    assert isinstance(blobs.store, BucketStore)
    return blobs.store, blobs.store.path(located.place.object_id.hex)


@pytest.mark.parametrize("content", [b"", b"small" * 100, LARGE], ids=["empty", "small", "in parts"])
def test_what_is_put_comes_back_and_lies_sealed_in_the_bucket(blobs: Blobs, content: bytes) -> None:
    digest = blobs.of(A).put(content)
    assert digest == sha256_of(content)
    assert blobs.of(A).read(digest) == content
    store, key = stored(blobs, BlobRef(A, digest))
    assert key.startswith("lab/blobs/")
    held = bytes(obstore.get(store._store, key).bytes())
    assert len(held) >= len(content) + 32
    assert content[:32] not in held or not content
    assert digest not in key


def test_a_range_is_read_without_the_rest(blobs: Blobs) -> None:
    digest, chance = blobs.of(A).put(LARGE), random.Random(2)
    with blobs.of(A).open(digest) as blob:
        for _ in range(20):
            start = chance.randrange(len(LARGE) - 1000)
            out = bytearray(1000)
            blob.read_into(start, memoryview(out))
            assert out == LARGE[start : start + 1000]


def test_reading_holds_a_window_and_not_the_object(blobs: Blobs) -> None:
    digest = blobs.of(A).put(LARGE)
    tracemalloc.start()
    with blobs.of(A).open(digest) as blob:
        assert sum(map(len, blob.chunks())) == len(LARGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < PART_BYTES


def test_two_tenants_share_no_object_and_the_same_bytes_of_one_are_kept_once(blobs: Blobs) -> None:
    for tenant in (A, B, A):
        blobs.of(tenant).put(b"the same")
    assert isinstance(blobs.store, BucketStore)
    assert len(names(blobs.store)) == 2


def test_the_service_is_asked_to_refuse_a_name_that_is_taken(store: BucketStore) -> None:
    name = token_hex(16)
    with store.incoming(name) as incoming:
        incoming.write(memoryview(b"first"))
        incoming.publish()
    with pytest.raises(AlreadyExistsError):
        obstore.put(store._store, store.path(name), b"second", mode="create", use_multipart=False)
    with store.incoming(name) as incoming:  # as when the answer to a first request was lost
        incoming.write(memoryview(b"second"))
        incoming.publish()
    with store.open(name) as found:
        out = bytearray(5)
        found.read_at(0, memoryview(out))
    assert out == b"first"
    with store.incoming(name) as incoming:
        incoming.write(memoryview(LARGE))
        with pytest.raises(Unavailable):
            incoming.publish()


def test_what_is_not_published_is_not_there(store: BucketStore) -> None:
    name = token_hex(16)
    with store.incoming(name) as incoming:
        incoming.write(memoryview(b"x"))
        incoming.flush()
    assert (store.has(name), names(store)) == (False, [])
    for whole in (False, True):
        with pytest.raises(Unavailable):
            store.open(name, whole=whole)
    store.delete(name)


@pytest.mark.parametrize("place", [0, 9, 20, 40_000, -1])
@pytest.mark.parametrize("whole", [False, True])
def test_an_object_that_was_changed_or_cut_in_the_bucket_is_refused(
    blobs: Blobs, place: int, whole: bool
) -> None:
    content = random.Random(4).randbytes(100_000)
    ref = BlobRef(A, blobs.of(A).put(content))
    store, key = stored(blobs, ref)
    held = bytearray(obstore.get(store._store, key).bytes())
    held[place] ^= 1
    for changed in (bytes(held), bytes(held[:-1]), bytes(held[: 16 + 32_768 + 16]), b""):
        obstore.put(store._store, key, changed)
        with pytest.raises(BlobDamaged), blobs.open(blobs.locate([ref])[0], whole=whole) as blob:
            blob.read(100_000)


def test_a_deleted_key_leaves_an_object_that_the_sweep_removes(
    blobs: Blobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, spared = blobs.of(A).put(b"one"), blobs.of(A).put(b"two")
    assert blobs.index.forget(BlobRef(A, digest), min_age_s=0.0) is not None
    with pytest.raises(BlobGone):
        blobs.of(A).read(digest)
    assert sum(blobs.tidy(f"{part:02x}") for part in range(256)) == 0  # it might be on its way in
    monkeypatch.setattr("app.custody.blobs.STALE_S", -60.0)
    with database.run_tx("test") as session:  # the service counts whole seconds
        session.execute(sa.text("UPDATE region_keys SET since = since - interval '2 seconds'"))
    assert sum(blobs.tidy(f"{part:02x}") for part in range(256)) == 1
    assert blobs.of(A).read(spared) == b"two"


def test_a_service_that_does_not_answer_is_a_503_and_nothing_is_kept(database: Database) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, and nobody listens
        store = open_store(f"s3://bucket/x?endpoint=http://127.0.0.1:{probe.getsockname()[1]}")
        blobs = Blobs(store, DatabaseIndex(database, ROOT))
        for act in (lambda: blobs.of(A).put(b"x"), store.check, lambda: store.has("0" * 32)):
            with pytest.raises(Unavailable):
                act()
        with pytest.raises(BlobGone):
            blobs.of(A).read(sha256_of(b"x"))


def test_a_bucket_that_is_missing_is_a_503(server: str) -> None:
    store = open_store(f"s3://b{token_hex(8)}?endpoint={server}")
    with store.incoming(token_hex(16)) as incoming:
        incoming.write(memoryview(b"x"))
        with pytest.raises(Unavailable):
            incoming.publish()


@pytest.mark.parametrize(
    "url",
    [
        "s3:///prefix",
        "s3://key:secret@bucket/prefix",
        "s3://bucket/prefix?endpoint=https://x&secret=y",
        "gs://bucket/x",
        "file://host/folder",
        "/folder",
    ],
)
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="BLOB_URL"):
        open_store(url)


def test_tensors_and_updates_are_read_out_of_a_bucket(blobs: Blobs) -> None:
    values = [torch.randn(3000, 7) for _ in range(3)]
    refs = [BlobRef(A, write_tensors(blobs.of(A), {"w": one})[0]) for one in values]
    with open_tensors(blobs.of(A), refs[0].sha256) as file:
        assert torch.equal(file.tensor("w"), values[0])
    out = np.empty(1000, dtype=np.float32)
    with BlobUpdates(blobs, blobs.locate(refs), wire_tensors([("w", (3000, 7))], "float32")) as source:
        for client, one in enumerate(values):
            source.read(client, 12_345, 13_345, out)
            assert np.array_equal(out, one.numpy().reshape(-1)[12_345:13_345])


def test_an_update_goes_over_http_into_the_bucket(
    api: TestClient, session: Session, settings: Settings, store: BucketStore
) -> None:
    api.app.state.blobs = Blobs(store, api.app.state.blobs.index)
    seat = Seat(api, Federation(session, settings))
    assert seat.put().status_code == 201
    (name,) = names(store)
    with store.open(name) as found:
        assert found.size_bytes > len(seat.body)
    own = api.app.state.blobs.of(seat.federation.organisation.id)
    assert own.read(sha256_of(seat.body)) == seat.body
