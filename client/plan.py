"""What a manifest says about local training, checked before a model is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.errors import ClientError
from client.i18n import _
from engines.lora.methods import METHODS as METHODS_OF_LORA
from engines.lora.methods import TWO_TURNS
from modelling.spec import METHODS

LEARNING_RATES = (1e-8, 1e4)
"""Between them something may be learned; outside, rounds would be spent for nothing."""
DIVISORS = (1e-3, 1e9)
_HEADS = ("classifier", "score", "out_proj")
"""What the last linear layer of a classification head is called."""
_UNITS = {
    "local": {"example", "person"},
    "central": {"client"},
    "none": {"example", "person", "client"},
}


@dataclass(frozen=True)
class TrainingPlan:
    """The constants of one round's local steps; none of them is derived from the data set."""

    private: bool
    """True: clip and noise at every step (trust `local`); False: neither (`none`, `central`)."""
    central: bool
    """True: the server clips the whole update and adds the noise (trust `central`)."""
    per_person: bool
    """True: what is sampled and clipped is all of a person's records together."""
    rate: float
    """Probability with which every example, or every person, is in a step, each by itself."""
    divisor: float
    """Public constant by which every step's sum is divided."""
    local_steps: int
    learning_rate: float
    momentum: float
    clip_norm: float
    """Bound C on one example's gradient over all trained tensors; 0 when not private."""
    noise_multiplier: float
    """z: the noise on a step's sum has the standard deviation z * C; 0 when not private."""
    proximal_mu: float
    """FedProx: each step, after its noise, goes back by this times the way from the round's adapter."""
    control_variates: bool
    """SCAFFOLD: each step, after its noise, is corrected by c - c_i."""

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> TrainingPlan:
        """Read the plan.

        Raises:
            ClientError: `unsupported_plan` when this client does not train like that; it never trains
                something near it.
        """
        training, privacy = manifest["training"], manifest["privacy"]
        _require_supported(training, privacy, lora=manifest["lora"])
        _require_head(manifest)
        private = privacy["trust"] == "local"
        examples = privacy["examples"]
        plan = cls(
            private=private,
            central=privacy["trust"] == "central",
            per_person=private and privacy["unit"] == "person",
            rate=_number(examples["rate"] if examples["kind"] == "poisson" else 1.0, "rate", most=1.0),
            divisor=_number(privacy["divisor"], "divisor", least=DIVISORS[0], most=DIVISORS[1]),
            local_steps=training["local_steps"],
            learning_rate=_number(
                training["learning_rate"], "learning_rate", least=LEARNING_RATES[0], most=LEARNING_RATES[1]
            ),
            momentum=training["momentum"],
            clip_norm=_number(privacy["clip_norm"], "clip_norm", least=1e-12, most=1e12) if private else 0.0,
            noise_multiplier=_number(privacy["noise_multiplier"], "noise_multiplier") if private else 0.0,
            proximal_mu=_number(mu, "proximal_mu") if (mu := training.get("proximal_mu", 0.0)) else 0.0,
            control_variates=training.get("control_variates", "none") != "none",
        )
        if not 0 <= plan.momentum < 1 or type(plan.local_steps) is not int or plan.local_steps < 1:
            raise _unsupported("momentum, local_steps")
        return plan


def _require_supported(
    training: Mapping[str, Any], privacy: Mapping[str, Any], *, lora: Mapping[str, Any]
) -> None:
    if training["optimizer"] != "sgd":
        raise _unsupported("optimizer")
    if training.get("control_variates", "none") != "none" and not _takes_variates(training, privacy, lora):
        raise _unsupported("control_variates")
    if training.get("gradient_checkpointing"):
        raise _unsupported("gradient_checkpointing")
    if training.get("dtype", "float32") != "float32":  # bfloat16 cannot hold a clipping bound
        raise _unsupported("dtype")
    if lora.get("use_dora"):
        raise _unsupported("use_dora")
    if lora["method"] not in METHODS:
        raise _unsupported("method")
    if privacy["trust"] not in _UNITS:
        raise _unsupported("trust")
    if privacy["trust"] == "central" and lora["method"] in TWO_TURNS:  # no sketch bounds its product
        raise _unsupported("method")
    if privacy["unit"] not in _UNITS[privacy["trust"]]:
        raise _unsupported("unit")
    if privacy["unit"] == "person" and privacy["trust"] == "local" and not privacy.get("person"):
        raise _unsupported("person")
    if privacy["examples"]["kind"] not in {"poisson", "all"}:
        raise _unsupported("examples")


def _takes_variates(training: Mapping[str, Any], privacy: Mapping[str, Any], lora: Mapping[str, Any]) -> bool:
    """Say whether variates follow from what is sent: noised or public, by plain SGD over the same numbers."""
    return (
        privacy["trust"] in {"local", "none"}
        and lora["method"] in METHODS_OF_LORA
        and METHODS_OF_LORA[lora["method"]].control_variates
        and not training["momentum"]
        and not training.get("proximal_mu", 0.0)
        and len(lora.get("ranks") or (lora["rank"],)) == 1
    )


def _require_head(manifest: Mapping[str, Any]) -> None:
    """The head has one row for each label; with fewer, training would fail on some data and not on others."""
    labels = manifest["task"]["labels"]
    for tensor in manifest.get("tensors", ()):
        module, _dot, kind = tensor["name"].rpartition(".")
        is_head = kind in {"weight", "bias"} and module.rpartition(".")[2] in _HEADS
        if is_head and tensor["shape"][0] != len(labels):
            raise _unsupported("labels, tensors")


def _number(value: Any, field: str, *, least: float = 0.0, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unsupported(field)
    if not (math.isfinite(value) and value > 0 and least <= value <= most):
        raise _unsupported(field)
    return float(value)


def _unsupported(field: str) -> ClientError:
    return ClientError(
        "unsupported_plan", _("This client does not train as the run's plan says: {field}."), field=field
    )
