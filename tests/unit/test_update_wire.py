"""The header check of updates: exactly the manifest's tensors, or a refusal that says what is wrong."""

import io
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from app.runs.methods import update_tensors
from app.runs.sending import DTYPES, VALUE_BYTES, WireTensor, wire_tensors
from app.updates.wire import (
    MAX_HEADER_BYTES,
    UpdateDtype,
    UpdateMalformed,
    check_header,
    data_bytes,
    size_bounds,
)
from tests.builders import tiny_manifest

SHAPES = {"a.weight": (2, 3), "b.weight": (4,)}
EXPECTED = wire_tensors(SHAPES.items(), "float32")
GOOD: dict[str, Any] = {
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
}


def file_of(header: object, *, data: int = 40, raw: bytes | None = None, length: int | None = None) -> bytes:
    text = raw if raw is not None else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def check(body: bytes) -> None:
    check_header(io.BytesIO(body), size_bytes=len(body), expected=EXPECTED)


def refused(body: bytes) -> UpdateMalformed:
    with pytest.raises(UpdateMalformed) as caught:
        check(body)
    return caught.value


def changed(name: str, **members: object) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | members}


def test_a_file_of_the_safetensors_library_is_taken() -> None:
    np = pytest.importorskip("numpy")
    body = save({name: np.zeros(shape, dtype="float32") for name, shape in SHAPES.items()})
    check(body)
    low, high = size_bounds(EXPECTED)
    assert low <= len(body) <= high


def test_tensors_may_lie_in_any_order_and_metadata_may_be_a_few_words() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b.weight": GOOD["b.weight"] | {"data_offsets": [0, 16]},
        "a.weight": GOOD["a.weight"] | {"data_offsets": [16, 40]},
    }
    check(file_of(header))


def test_what_is_expected_is_exactly_what_the_manifest_trains() -> None:
    expected = update_tensors(tiny_manifest(), number=1)
    assert all("lora_A" not in name for name in expected)
    assert data_bytes(expected) == 4 * sum(math.prod(tensor.shape) for tensor in expected.values())


@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_each_wire_dtype_is_taken_where_the_manifest_names_it_and_no_other(wire_dtype: Any) -> None:
    expected = wire_tensors(SHAPES.items(), wire_dtype)
    header, end = {}, 0
    for name, tensor in expected.items():
        start, end = end, end + tensor.size_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    body = file_of(header, data=end)
    check_header(io.BytesIO(body), size_bytes=len(body), expected=expected)
    low, high = size_bounds(expected)
    assert low <= len(body) <= high
    assert data_bytes(expected) == 10 * VALUE_BYTES[DTYPES[wire_dtype]] + (8 if wire_dtype == "int8" else 0)
    for other in sorted(set(DTYPES) - {wire_dtype}):
        with pytest.raises(UpdateMalformed):
            check_header(io.BytesIO(body), size_bytes=len(body), expected=wire_tensors(SHAPES.items(), other))


def test_an_int8_tensor_without_its_scale_is_refused() -> None:
    expected = wire_tensors({"b.weight": (4,)}.items(), "int8")
    assert expected["b.weight.scale"] == WireTensor("F32", (1,))
    body = file_of({"b.weight": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}, data=4)
    with pytest.raises(UpdateMalformed) as caught:
        check_header(io.BytesIO(body), size_bytes=len(body), expected=expected)
    assert caught.value.members["tensor"] == "b.weight.scale"


@pytest.mark.parametrize("dtype", ["I8", "U8", "I16", "I32", "I64", "U64", "BOOL", "F64", "F8_E4M3"])
def test_whole_numbers_and_other_types_are_refused_with_a_code_of_their_own(dtype: str) -> None:
    refusal = refused(file_of(changed("a.weight", dtype=dtype)))
    assert isinstance(refusal, UpdateDtype)
    assert (refusal.code, refusal.members["tensor"]) == ("update_dtype", "a.weight")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{" * 100,
        struct.pack("<Q", 0) + bytes(40),
        file_of(GOOD, length=10**6),
        file_of(GOOD, length=5),
        file_of(None, raw=b"[]"),
        file_of(None, raw=b" " + json.dumps(GOOD).encode()),
        file_of(None, raw=b"{" + b"\xff\xfe" + b"}"),
        file_of(None, raw=b'{"a.weight": NaN}'),
        file_of(None, raw=b"{" + b'"a":{' * 5000 + b"}" * 5001),
        file_of(None, raw=b'{"a.weight": ' + b"9" * 6000 + b"}"),
        b"\x80\x04\x95pickled",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_what_is_no_header_is_refused(body: bytes) -> None:
    refused(body)


@pytest.mark.parametrize(
    "header",
    [
        changed("a.weight", dtype="F16"),
        changed("a.weight", dtype="BF16"),
        changed("a.weight", dtype=None),
        changed("a.weight", shape=[3, 2]),
        changed("a.weight", shape=[6]),
        changed("a.weight", shape=[2.0, 3]),
        changed("a.weight", shape=[True, 6]),
        changed("a.weight", shape=[-2, -3]),
        changed("a.weight", shape="23"),
        changed("a.weight", data_offsets=[0, 20]),
        changed("a.weight", data_offsets=[4, 28]),
        changed("a.weight", data_offsets=[24, 0]),
        changed("a.weight", data_offsets=[0]),
        changed("a.weight", data_offsets=[0, 24, 48]),
        changed("a.weight", data_offsets=[False, 24]),
        changed("a.weight", data_offsets=[2**70, 2**70 + 24]),
        changed("b.weight", data_offsets=[0, 16]),
        changed("b.weight", data_offsets=[28, 44]),
        changed("b.weight", extra=1),
        GOOD | {"b.weight": [1]},
        {name: GOOD[name] for name in ("a.weight",)},
        GOOD | {"c.weight": {"dtype": "F32", "shape": [0], "data_offsets": [40, 40]}},
        GOOD | {"../../etc/passwd\x00": GOOD["a.weight"]},
        GOOD | {"__metadata__": {"a": 1}},
        GOOD | {"__metadata__": {"a": {"b": "c"}}},
        GOOD | {"__metadata__": {"a": "x" * 300}},
        GOOD | {"__metadata__": {str(n): "x" for n in range(9)}},
        GOOD | {"__metadata__": "text"},
    ],
)
def test_a_header_that_differs_from_the_manifest_is_refused(header: dict[str, Any]) -> None:
    refused(file_of(header))


def test_a_name_that_stands_twice_is_refused_though_the_last_one_would_be_right() -> None:
    text = json.dumps(GOOD).encode()
    twice = b'{"a.weight": {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},' + text[1:]
    assert refused(file_of(None, raw=twice)).members["tensor"] == "a.weight"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (36, "the file has 4 bytes too few"),
        (0, "the file has 40 bytes too few"),
        (41, "the file has 1 bytes too many"),
        (400, "the file has 360 bytes too many"),
    ],
)
def test_bytes_missing_or_left_over_are_refused_and_counted(data: int, told: str) -> None:
    assert str(refused(file_of(GOOD, data=data))) == told


def test_a_refusal_names_the_tensor_without_repeating_a_strangers_bytes() -> None:
    assert refused(file_of(changed("b.weight", dtype="I8"))).members["tensor"] == "b.weight"
    shown = refused(file_of(GOOD | {"\u202e" * 500: 1})).members["tensor"]
    assert shown.isascii()
    assert len(shown) <= 600


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_and_nothing_else_happens(body: bytes) -> None:
    refused(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # how fast a busy machine makes inputs is no fault
@given(
    st.dictionaries(st.sampled_from(["a.weight", "b.weight", "__metadata__", "x"]), json_values, max_size=4)
)
def test_any_json_object_is_either_the_right_header_or_refused(header: dict[str, Any]) -> None:
    refused(file_of(header))


@given(st.integers(0, 39 + 8 + len(json.dumps(GOOD))), st.integers(1, 255))
def test_a_flipped_byte_of_the_header_never_makes_another_exception(position: int, mask: int) -> None:
    body = bytearray(file_of(GOOD))
    body[position] ^= mask
    try:
        check(bytes(body))
    except UpdateMalformed:
        return
    header_length = struct.unpack("<Q", bytes(body[:8]))[0]
    header = json.loads(bytes(body[8 : 8 + header_length]))
    header.pop("__metadata__", None)
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == SHAPES


@given(st.integers(0, 8 + len(json.dumps(GOOD)) + 39))
def test_a_truncated_file_is_always_refused(length: int) -> None:
    refused(file_of(GOOD)[:length])
