"""An update as it is sent: rounded to the manifest's wire dtype, always finite, the same bytes every time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from app.runs.sending import DTYPES, SCALE, wire_tensors
from client.update_file import update_file

FLOAT32_MAX = torch.finfo(torch.float32).max
floats = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8)


def sent(values: list[float], wire_dtype: str) -> dict[str, Tensor]:
    return load(update_file({"x": torch.tensor(values)}, wire_dtype=wire_dtype))


def decoded(values: list[float], wire_dtype: str) -> Tensor:
    held = sent(values, wire_dtype)
    wide = held["x"].to(torch.float32)
    return wide * held["x" + SCALE] if wire_dtype == "int8" else wide


@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
@given(values=floats)
def test_a_finite_update_is_finite_on_the_wire(wire_dtype: str, values: list[float]) -> None:
    assert bool(torch.isfinite(decoded(values, wire_dtype)).all())


@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_the_file_has_exactly_the_tensors_that_the_server_expects(wire_dtype: str) -> None:
    update = {"b": torch.ones(3), "a": torch.ones(2, 2).T}
    held = load(update_file(update, wire_dtype=wire_dtype))
    expected = wire_tensors([("a", (2, 2)), ("b", (3,))], wire_dtype)  # type: ignore[arg-type]
    assert {name: tuple(one.shape) for name, one in held.items()} == {
        name: one.shape for name, one in expected.items()
    }
    assert update_file(update, wire_dtype=wire_dtype) == update_file(update, wire_dtype=wire_dtype)


@pytest.mark.parametrize(
    ("wire_dtype", "largest"),
    [("float16", 65504.0), ("bfloat16", 3.3895313892515355e38), ("float32", FLOAT32_MAX)],
)
def test_what_is_over_the_range_becomes_the_largest_value(wire_dtype: str, largest: float) -> None:
    assert decoded([FLOAT32_MAX, -FLOAT32_MAX, 1.0], wire_dtype).tolist() == [largest, -largest, 1.0]


def test_int8_of_the_largest_floats_does_not_overflow() -> None:
    assert decoded([FLOAT32_MAX, -FLOAT32_MAX], "int8").tolist() == pytest.approx([3.4028e38, -3.4028e38])


def test_int8_is_symmetric_and_its_largest_size_is_kept() -> None:
    held = sent([0.5, -1.0, 0.0, 0.25], "int8")
    assert held["x"].tolist() == [64, -127, 0, 32]
    assert held["x" + SCALE].item() == pytest.approx(1 / 127, rel=1e-7)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-45, 0.0]])
def test_int8_of_nothing_is_nothing(values: list[float]) -> None:
    assert decoded(values, "int8").tolist() == [0.0, 0.0]


def test_a_trained_tensor_may_not_be_called_as_anothers_scale() -> None:
    names = [("x", (2,)), ("x" + SCALE, (1,))]
    assert len(wire_tensors(names, "float16")) == 2
    with pytest.raises(ValueError, match="another one's scale"):
        wire_tensors(names, "int8")
