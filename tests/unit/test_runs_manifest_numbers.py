"""No number of a plan may be infinite or none at all, wherever it stands."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from app.runs.manifest import EXAMPLE, Manifest


def plan() -> dict[str, Any]:
    """The example with the numbers that it leaves out."""
    document = copy.deepcopy(EXAMPLE)
    document["privacy"]["noise_multiplier"] = 1.0
    optimizer = {"kind": "fedadam", "rate": 1.0, "momentum": 0.9, "decay": 0.99, "adaptivity": 1e-3}
    document["aggregation"] |= {
        "clip_norm": 1.0,
        "settings": {"radius": 1.0},
        "server_optimizer": optimizer,
    }
    return document


def numbers(part: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a document has numbers; truth values are none."""
    for name, value in part.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, name)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_plan_may_be_none(bad: float) -> None:
    """`nan <= 0` is false: a check that looks only for numbers that are too small lets it pass."""
    Manifest.model_validate(plan())
    paths = list(numbers(plan()))
    assert {("privacy", "clip_norm"), ("aggregation", "settings", "radius"), ("rounds",)} <= set(paths)
    for path in paths:
        document = plan()
        target = document
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = bad
        with pytest.raises(ValidationError, match=path[-1]):
            Manifest.model_validate(document)
