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
    document["privacy"] |= {
        "noise_multiplier": 1.0,
        "cohort": {"kind": "poisson", "rate": 0.25, "cap": 8, "n_max": 8},
        "adaptive_clip": {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 2.0},
        "person": {"id_field": "author", "records_cap": 4, "silos": 2},
        "audit": {"canaries": 200},
    }
    optimizer = {"kind": "fedadam", "rate": 1.0, "momentum": 0.9, "decay": 0.99, "adaptivity": 1e-3}
    counts = {"trimmed": 1, "chosen": 3, "removed": 1, "iterations": 3, "bucket_size": 2}
    document["aggregation"] |= {
        "clip_norm": 1.0,
        "settings": {"radius": 1.0, "memory": 0.9} | counts,
        "server_optimizer": optimizer,
    }
    module = "bert.encoder.layer.5.attention.self.value"
    patterns = {"rank_pattern": {module: 2}, "alpha_pattern": {module: 3.0}}
    document["lora"] |= {"energy": 0.9, "sketch_width": 8} | patterns
    document["training"]["proximal_mu"] = 0.1
    document["buffered"] = {"participations": 3, "staleness": 1}
    return document


def real_members() -> set[str]:
    """The names of all members of a plan that are real numbers, by its schema."""
    schema = Manifest.model_json_schema()
    return {
        name
        for part in (schema, *schema["$defs"].values())
        for name, member in part.get("properties", {}).items()
        if "number" in {kind.get("type") for kind in (member, *member.get("anyOf", ()))}
    }


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
    assert {"energy", "proximal_mu", "bit_noise"} <= real_members() <= {path[-1] for path in paths}
    for path in paths:
        document = plan()
        target = document
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = bad
        with pytest.raises(ValidationError, match=path[-1]):
            Manifest.model_validate(document)


@pytest.mark.parametrize("bad", [0.0, -1.0, -0.0])
@pytest.mark.parametrize("where", ["privacy", "aggregation"])
def test_a_clip_norm_that_clips_everything_away_is_refused(where: str, bad: float) -> None:
    document = plan()
    document[where]["clip_norm"] = bad
    with pytest.raises(ValidationError, match="clip_norm"):
        Manifest.model_validate(document)
