"""Receiving a body: a body that stalls or drips is given up, and the digest header is read strictly."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from app.updates import stream
from app.updates.stream import BodyTooSlow, DigestMissing, LengthRequired, announced, receive
from tests.blobs import memory_blobs

Body = Callable[[], AsyncGenerator[bytes]]
DIGEST = base64.b64encode(hashlib.sha256(b"x").digest()).decode()


async def stalling() -> AsyncGenerator[bytes]:
    yield b"a"
    await asyncio.Event().wait()
    yield b"b"


async def dripping() -> AsyncGenerator[bytes]:
    while True:
        yield b"a"
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("body", "idle_s", "grace_s"), [(stalling, 0.02, 60.0), (stalling, 30.0, 0.02), (dripping, 30.0, 0.02)]
)
def test_a_body_that_stalls_or_drips_is_given_up_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: Body, idle_s: float, grace_s: float
) -> None:
    monkeypatch.setattr(stream, "IDLE_S", idle_s)
    monkeypatch.setattr(stream, "GRACE_S", grace_s)
    monkeypatch.setattr(stream, "SLOWEST_BYTES_PER_S", 10**12)
    blobs = memory_blobs(tmp_path)

    async def run() -> None:
        chunks = body()
        try:
            with blobs.writer() as writer:
                await receive(chunks, writer, size_bytes=10**6, sha256="0" * 64, expected={})
        finally:
            await chunks.aclose()

    with pytest.raises(BodyTooSlow):
        asyncio.run(run())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "header",
    [
        f"sha-256=:{DIGEST}:",
        f"sha-512=:AAAA:, sha-256=:{DIGEST}:",
        f"sha-256=:{DIGEST}:,md5=:AAAA:",
    ],
)
def test_the_sha256_is_found_among_other_digests(header: str) -> None:
    headers = {"content-length": "7", "content-digest": header}
    assert announced(headers) == (7, hashlib.sha256(b"x").hexdigest())


@pytest.mark.parametrize(
    "header", ["", DIGEST, f"sha-256={DIGEST}", f"xsha-256=:{DIGEST}:", f"sha-256=:{DIGEST}:x"]
)
def test_a_digest_of_another_form_is_refused(header: str) -> None:
    with pytest.raises(DigestMissing):
        announced({"content-length": "7", "content-digest": header})


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-length": "²"}, {"content-length": "7", "transfer-encoding": "chunked"}],
)
def test_a_length_that_is_no_plain_number_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(LengthRequired):
        announced(headers | {"content-digest": f"sha-256=:{DIGEST}:"})
