"""The plans of the small clients' demo: noise by the server over a secret cohort, and the same without any.

What one epsilon covers here is all mails of one client. All numbers are constants.
"""

from __future__ import annotations

from typing import Any

from demo import plan
from demo.plan import Arm
from engines.privacy.accounting import smallest_cap

CLIENTS = 202
ROUNDS, OPEN_ROUNDS = 30, 8
"""A client is in about a quarter of 30 rounds, or in every one of 8: the same amount of training."""
RATE = 0.25
CAP = smallest_cap(CLIENTS, rate=RATE)
CLIP_NORM = 1.43
LEARNING_RATE = 20.0
LORA: dict[str, Any] = plan.LORA | {"rank": 4, "alpha": 2.8}


def manifest(arm: Arm, *, seed: int) -> dict[str, Any]:
    """The manifest of an arm; the server clips and noises each client's whole update in the private one.

    Args:
        seed: initialises the adapter; public.
    """
    private = arm.epsilon is not None
    expected = RATE * CLIENTS
    cohort = (
        {"kind": "poisson", "rate": RATE, "cap": CAP, "n_max": CLIENTS} if private else {"kind": "everyone"}
    )
    return plan.assembled(
        lora=LORA | {"seed": seed},
        training={"optimizer": "sgd", "learning_rate": LEARNING_RATE, "momentum": 0.0, "local_steps": 2},
        privacy={
            "trust": "central" if private else "none",
            "unit": "client",
            "relation": "zero_out",
            "cohort": cohort,
            "examples": {"kind": "poisson", "rate": 0.5},
            "clip_norm": CLIP_NORM if private else None,
            "noise_multiplier": None,
            "epsilon": arm.epsilon,
            "delta": plan.DELTA if private else None,
            "divisor": expected,
        },
        rounds=ROUNDS if private else OPEN_ROUNDS,
        # Here nobody watches the times, and 30 deadlines would be long. The certificate says it.
        quorum={"min_updates": 0, "max_updates": CAP, "seal": "quorum"}
        if private
        else {"min_updates": CLIENTS, "max_updates": CLIENTS},
    )
