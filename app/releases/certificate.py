"""The certificate of a release: what may be claimed about its privacy, and all that the claim rests on.

Signed JSON. Its texts are fixed English, since they are part of what is signed. A number that is not
accompanied by unit, relation, sampling, adversary, delta and accountant claims nothing and is not written.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.budget.arithmetic import shown_delta, shown_spent
from app.budget.queries import AccountView, claimed_epsilon
from app.core.canonical import canonical_bytes

VERSION = 1
ALGORITHM = "EdDSA"
Sign = Callable[[bytes], tuple[str, bytes]]
"""Signs bytes: (key id, signature)."""

_UNIT = (
    "One record in one client's data set. A person with m records is protected by group privacy only: about "
    "m times epsilon, at a larger delta. A record that k clients hold is charged k times."
)
_ADVERSARY = (
    "Sees every update that leaves a client, every release and all data but the one record; does not learn "
    "which records entered a step's batch, which is drawn inside the client and never leaves it."
)
_BASIS = (
    "Declared by the clients, not attested: each client clips and adds the noise itself, and no hardware "
    "or third party has confirmed that it did."
)
_COMPOSITION = (
    "Each client's loss is the composition of its own noised steps; averaging and everything later is "
    "post-processing. The claim is the maximum over clients, never a sum divided by their number."
)
_NOT_CLAIMED = (
    "Anything about a person as such.",
    "The choice of this plan (model, rate, learning rate), if it was tuned on the same data.",
    "That the clients' software ran unmodified.",
    "Any influence of the public base model's own training data.",
)
_RELATIONS = {
    "zero_out": "One record's contribution is replaced by zero; the existence, participation, timing and "
    "sizes of clients are public.",
    "replace_one": "One record is replaced by another; the sensitivity is twice the clip norm.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A release that this run, or a run before it, started from."""

    release_id: UUID
    run_id: UUID
    trust: str
    epsilon: float | None
    delta: float | None
    shares_clients: bool
    """Whether data of this run took part in that one, under whichever client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a certificate is made from; collected by whoever records the release."""

    release_id: UUID
    run_id: UUID
    round_id: UUID
    number: int
    adapter_sha256: str
    manifest: dict[str, Any]
    manifest_sha256: str
    price: dict[str, Any]
    rounds_aggregated: Sequence[int]
    clients: int
    accounts: Sequence[AccountView]
    ancestors: Sequence[Ancestor]
    open_runs: int
    """Started runs with trust `none` in which data of this run took part: no sum can cover them."""
    issuer: str
    issued_at: datetime


def build(facts: Facts) -> dict[str, Any]:
    """The certificate's content, not signed yet."""
    manifest = facts.manifest
    return {
        "version": VERSION,
        "issuer": facts.issuer,
        "issued_at": facts.issued_at.isoformat(timespec="seconds"),
        "release": {
            "id": str(facts.release_id),
            "run_id": str(facts.run_id),
            "round_id": str(facts.round_id),
            "round": facts.number,
            "rounds_planned": manifest["rounds"],
            "rounds_aggregated": list(facts.rounds_aggregated),
            "clients": facts.clients,
            "adapter_sha256": facts.adapter_sha256,
            "base_model": manifest["base_model"],
            "lora_method": manifest["lora"]["method"],
            "parents": [str(ancestor.release_id) for ancestor in facts.ancestors],
        },
        "manifest_sha256": facts.manifest_sha256,
        "privacy": _privacy(facts),
    }


def sign(content: dict[str, Any], signer: Sign) -> dict[str, Any]:
    """Add the signature, over the canonical bytes of everything else."""
    kid, signature = signer(canonical_bytes(content))
    value = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    return content | {"signature": {"kid": kid, "alg": ALGORITHM, "value": value}}


def _privacy(facts: Facts) -> dict[str, Any]:
    trust = facts.manifest["privacy"]["trust"]
    if trust == "none":
        return _no_claim(trust, "This run used no privacy mechanism. Nothing is claimed.")
    if any(ancestor.trust == "none" and ancestor.shares_clients for ancestor in facts.ancestors):
        return _no_claim(
            trust,
            "This run started from an adapter that was trained without a privacy mechanism on data of the "
            "same clients. Its own noise cannot take that back. Nothing is claimed.",
        )
    return _claim(facts)


def _no_claim(trust: str, why: str) -> dict[str, Any]:
    return {"claimed": False, "trust": trust, "statement": why}


def _claim(facts: Facts) -> dict[str, Any]:
    manifest, price = facts.manifest, facts.price
    privacy = manifest["privacy"]
    return {
        "claimed": True,
        "statement": f"({price['epsilon']}, {price['delta']})-differential privacy of one {privacy['unit']} "
        f"under {privacy['relation']}, for the whole schedule of this run.",
        "trust": privacy["trust"],
        "basis": _BASIS,
        "unit": privacy["unit"],
        "unit_means": _UNIT,
        "relation": privacy["relation"],
        "relation_means": _RELATIONS[privacy["relation"]],
        "cohort": privacy["cohort"],
        "examples": privacy["examples"],
        "clip_norm": privacy["clip_norm"],
        "noise_multiplier": privacy["noise_multiplier"],
        "divisor": privacy["divisor"],
        "steps": manifest["rounds"] * manifest["training"]["local_steps"],
        "adversary": _ADVERSARY,
        "composition": _COMPOSITION,
        "this_run": {
            "epsilon": price["epsilon"],
            "delta": price["delta"],
            "accountant": price["accountant"],
            "covers": f"all {manifest['rounds']} rounds, as committed before the first of them",
        },
        "population": _population(facts),
        "starts_from": [_start(ancestor) for ancestor in facts.ancestors],
        "not_claimed": list(_NOT_CLAIMED),
    }


def _population(facts: Facts) -> dict[str, Any]:
    """All runs on the same data, this one included: the largest epsilon and the largest delta of any account.

    The two may be of different accounts. The larger of each holds for every one of them.
    """
    if facts.open_runs:
        return {
            "claimed": False,
            "statement": f"Data of the same clients took part in {facts.open_runs} run(s) without a privacy "
            "mechanism. No sum covers those.",
        }
    if not facts.accounts:
        return {"claimed": False, "statement": "No account of this run's data sets is known."}
    worst = max(facts.accounts, key=claimed_epsilon)
    basic = worst.order is None
    return {
        "claimed": True,
        "epsilon": shown_spent(claimed_epsilon(worst)),
        "delta": max(_claimed_delta(account) for account in facts.accounts),
        "account_kind": worst.kind,
        "order": worst.order,
        "covers": "all runs on one data set so far, spent and reserved; the largest of this run's data sets",
        "adds_up": "sum of each run's PLD epsilon and delta" if basic else "sum of divergences at one order",
    }


def _claimed_delta(account: AccountView) -> float:
    if account.order is not None:
        return account.delta
    return shown_delta(account.delta_spent + account.delta_reserved)


def _start(ancestor: Ancestor) -> dict[str, Any]:
    return {
        "release_id": str(ancestor.release_id),
        "run_id": str(ancestor.run_id),
        "trust": ancestor.trust,
        "epsilon": ancestor.epsilon,
        "delta": ancestor.delta,
        "same_clients": ancestor.shares_clients,
    }
