"""A manifest to start from: what only the base model's files tell is filled in, the rest is a proposal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cli.i18n import _

_MAX_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """What a person chooses of the model."""

    labels: list[str]
    text_fields: list[str]
    layers: list[int]
    rank: int
    method: str
    seed: int
    ranks: list[int] | None = None


def manifest_for(locator: str, shape: Shape, *, clients: int) -> dict[str, Any]:
    """Return a whole manifest, with the model's digest and every tensor of its adapter.

    All of the `clients` make the quorum, and the rule is the default one for so many.

    Raises:
        ClientError: the base model is missing, or the shape does not fit it.
    """
    from app.runs.robust import default_aggregation
    from client.errors import ClientError
    from modelling.adapters import adapter_tensors
    from modelling.base import locate_base_model
    from modelling.errors import ModelRefused
    from modelling.spec import ModelSpec

    try:
        folder = locate_base_model(locator)
        plan = _proposal() | _model_part(locator, shape)
        plan["quorum"] = {"min_updates": clients, "max_updates": clients}
        rule = default_aggregation(
            trust=plan["privacy"]["trust"],
            min_updates=clients,
            method=shape.method,
            mixed_ranks=len(shape.ranks or ()) > 1,
        )
        plan["aggregation"] = rule.model_dump(mode="json")
        plan["tensors"] = adapter_tensors(ModelSpec.from_manifest(plan), folder)
    except ModelRefused as error:
        raise ClientError(error.code, _("the model cannot be used: {why}"), why=str(error)) from error
    return plan


def _model_part(locator: str, shape: Shape) -> dict[str, Any]:
    from modelling.architectures import architecture_of
    from modelling.base import locate_base_model, weights_digest

    folder = locate_base_model(locator)
    config = _config(locator)
    architecture = architecture_of(config["model_type"])
    return {
        "task": {
            "kind": "sequence_classification",
            "labels": shape.labels,
            "text_fields": shape.text_fields,
            "label_field": "label",
            "max_tokens": min(_MAX_TOKENS, _positions(config)),
            "pooling": "mean",
        },
        "base_model": {
            "name": locator.partition(":")[2].partition("/")[0] or folder.name,
            "locator": locator,
            "weights_sha256": weights_digest(folder),
            "architecture": config["model_type"],
        },
        "lora": {
            "method": shape.method,
            "rank": shape.rank,
            "ranks": shape.ranks,
            "energy": None,
            "sketch_width": None,
            "alpha": float(shape.rank),
            "target_modules": list(architecture.usual_targets),
            "layers": shape.layers,
            "modules_to_save": [architecture.mean_head],
            "seed": shape.seed,
        },
    }


def _positions(config: dict[str, Any]) -> int:
    """How many tokens a text may have at most; GPT-2 has its own word for it."""
    found = config.get("max_position_embeddings", config.get("n_positions", _MAX_TOKENS))
    return found if isinstance(found, int) else _MAX_TOKENS


def _config(locator: str) -> dict[str, Any]:
    """Read what kind of model it is, and how long a text it takes."""
    from client.errors import ClientError
    from modelling.base import locate_base_model

    unreadable = ClientError("base_model_missing", _("{folder} has no readable config.json"), folder=locator)
    try:
        config = json.loads((locate_base_model(locator) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise unreadable
    return config


def _proposal() -> dict[str, Any]:
    return {
        "version": 1,
        "training": {"optimizer": "sgd", "learning_rate": 4.0, "momentum": 0.9, "local_steps": 8},
        "privacy": {
            "trust": "local",
            "unit": "example",
            "relation": "zero_out",
            "cohort": {"kind": "everyone"},
            "examples": {"kind": "poisson", "rate": 0.1},
            "clip_norm": 0.4,
            "noise_multiplier": None,
            "epsilon": 2.0,
            "delta": 1e-6,
            "divisor": 64.0,
        },
        "rounds": 8,
        "round_deadline_s": 3600.0,
    }
