"""Bytes at rest: any change of them, of their place or of their key is refused, and nothing is given out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from app.core.envelope import HEADER_BYTES, TAG_BYTES, EnvelopeBroken, Opener, Place, Sealer

LOG2, CHUNK = 9, 512
FULL = CHUNK + TAG_BYTES
KEY = bytes(range(32))
PLACE = Place(UUID(int=1), UUID(int=2), "eu-west-1")
PLAIN = random.Random(1).randbytes(3 * CHUNK + 100)


class Held:
    """Sealed bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size_bytes = data, len(data)

    def read_at(self, offset: int, buffer: memoryview) -> int:
        piece = self.data[offset : offset + buffer.nbytes]
        buffer[: len(piece)] = piece
        return len(piece)


def sealed(plain: bytes, *, place: Place = PLACE, key: bytes = KEY, step: int | None = None) -> bytes:
    parts: list[bytes] = []
    sealer = Sealer(lambda view: parts.append(bytes(view)), key, place, chunk_log2=LOG2)
    for start in range(0, len(plain), step or max(1, len(plain))):
        sealer.write(plain[start : start + (step or len(plain))])
    sealer.finish()
    return b"".join(parts)


def opened(data: bytes, *, place: Place = PLACE, key: bytes = KEY) -> bytes:
    opener = Opener(Held(data), key, place)
    out = bytearray(opener.size_bytes)
    opener.read_into(0, memoryview(out))
    return bytes(out)


def given_out(data: bytes) -> bytes | None:
    """What a reader of changed bytes has in its buffer when it is refused; None if it was not refused."""
    out = bytearray(len(PLAIN))
    try:
        opener = Opener(Held(data), KEY, PLACE)
        opener.read_into(0, memoryview(out)[: opener.size_bytes])
    except EnvelopeBroken:
        return bytes(out)
    return None


@pytest.mark.parametrize("step", [None, 1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 100])
def test_every_length_in_pieces_of_any_length_comes_back(size: int, step: int | None) -> None:
    data = sealed(PLAIN[:size], step=step)
    assert len(data) == HEADER_BYTES + size + TAG_BYTES * max(1, -(-size // CHUNK))
    assert opened(data) == PLAIN[:size]


def test_any_range_is_read_as_it_is() -> None:
    opener, chance = Opener(Held(sealed(PLAIN)), KEY, PLACE), random.Random(2)
    for _ in range(2000):
        start = chance.randint(0, len(PLAIN))
        out = bytearray(chance.randint(0, len(PLAIN) - start))
        opener.read_into(start, memoryview(out))
        assert out == PLAIN[start : start + len(out)]
    for start, size in ((-1, 1), (0, len(PLAIN) + 1), (len(PLAIN), 1)):
        with pytest.raises(ValueError, match="not within"):
            opener.read_into(start, memoryview(bytearray(size)))


def test_the_same_bytes_are_sealed_differently_each_time() -> None:
    assert sealed(PLAIN) != sealed(PLAIN)


def test_a_stream_that_is_finished_takes_nothing_more() -> None:
    sealer = Sealer(lambda view: None, KEY, PLACE, chunk_log2=LOG2)
    sealer.finish()
    with pytest.raises(ValueError, match="finished"):
        sealer.finish()


def _places(data: bytes) -> list[int]:
    """Every byte of the header, and of each chunk its first and last byte and each byte of its tag."""
    places = list(range(HEADER_BYTES))
    for start in range(HEADER_BYTES, len(data), FULL):
        end = min(start + FULL, len(data))
        places += [start, end - TAG_BYTES - 1, *range(end - TAG_BYTES, end)]
    return places


def test_a_changed_byte_at_every_structural_place_is_refused() -> None:
    data = sealed(PLAIN)
    for place in _places(data):
        for mask in (1, 0x80, 0xFF):
            changed = bytearray(data)
            changed[place] ^= mask
            assert given_out(bytes(changed)) is not None, place


def test_a_cut_at_every_structural_place_is_refused_and_gives_nothing_out() -> None:
    data = sealed(PLAIN)
    edges = [*range(HEADER_BYTES + 1), *range(HEADER_BYTES, len(data), FULL), *_places(data), len(data) - 1]
    for cut in edges:
        assert given_out(data[:cut]) == bytes(len(PLAIN)), cut


def test_bytes_that_are_added_are_refused_and_nothing_is_given_out() -> None:
    data = sealed(PLAIN)
    for more in (b"\0", data[-FULL:], data[HEADER_BYTES : HEADER_BYTES + FULL], bytes(10 * FULL)):
        assert given_out(data + more) == bytes(len(PLAIN))


def _rearranged(order: list[int]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        chunks = [data[start : start + FULL] for start in range(HEADER_BYTES, len(data), FULL)]
        return data[:HEADER_BYTES] + b"".join(chunks[number] for number in order)

    return change


@pytest.mark.parametrize(
    "order", [[1, 0, 2, 3], [0, 2, 1, 3], [0, 0, 2, 3], [0, 1, 3], [0, 1, 2], [3], [0, 1, 2, 2, 3], [1, 2, 3]]
)
def test_chunks_that_are_swapped_repeated_or_left_out_are_refused(order: list[int]) -> None:
    assert given_out(_rearranged(order)(sealed(PLAIN))) is not None


def test_a_chunk_of_another_stream_under_the_same_key_is_refused() -> None:
    one, other = sealed(PLAIN), sealed(PLAIN)
    end = HEADER_BYTES + FULL
    assert given_out(one[:HEADER_BYTES] + other[HEADER_BYTES:end] + one[end:]) == bytes(len(PLAIN))


@pytest.mark.parametrize(
    "change", [{"tenant": UUID(int=9)}, {"object_id": UUID(int=9)}, {"region": "us-east-1"}, {"region": ""}]
)
def test_the_bytes_of_another_tenant_object_or_region_are_refused(change: dict[str, object]) -> None:
    elsewhere = replace(PLACE, **change)  # type: ignore[arg-type]  # names and types are Place's own
    assert opened(sealed(PLAIN, place=elsewhere), place=elsewhere) == PLAIN
    with pytest.raises(EnvelopeBroken):
        opened(sealed(PLAIN, place=elsewhere))


def test_another_key_is_refused() -> None:
    with pytest.raises(EnvelopeBroken):
        opened(sealed(PLAIN), key=bytes(32))


def test_ten_thousand_random_changes_are_refused_and_no_changed_chunk_is_given_out() -> None:
    """Flips, cuts and overwritten stretches; what comes before a changed chunk may be there."""
    data, chance = sealed(PLAIN), random.Random(3)
    for number in range(10_000):
        changed, place = bytearray(data), chance.randrange(len(data))
        if number % 3 == 0:
            changed[place] ^= chance.randint(1, 255)
        elif number % 3 == 1:
            del changed[place:]
        else:
            count = min(chance.randint(1, 64), len(data) - place)
            changed[place : place + count] = chance.randbytes(count)
            if changed == data:
                continue
        held = given_out(bytes(changed))
        assert held is not None, (number, place)
        first = max(0, place - HEADER_BYTES) // FULL * CHUNK
        assert held[first:] == bytes(len(PLAIN) - first), (number, place)


def test_a_tag_that_fails_wipes_what_the_library_had_written() -> None:
    """OpenSSL decrypts into the buffer before it looks at the tag."""
    changed = bytearray(sealed(PLAIN))
    changed[HEADER_BYTES + FULL + CHUNK] ^= 1  # the tag of the second chunk: its bytes decrypt well
    opener, out = Opener(Held(bytes(changed)), KEY, PLACE), bytearray(b"x" * 2 * CHUNK)
    with pytest.raises(EnvelopeBroken, match="chunk 1"):
        opener.read_into(0, memoryview(out))
    assert out == PLAIN[:CHUNK] + bytes(CHUNK)
    with pytest.raises(EnvelopeBroken):
        opener.read_into(CHUNK + 5, memoryview(out)[:7])
    assert out == PLAIN[:CHUNK] + bytes(CHUNK)
