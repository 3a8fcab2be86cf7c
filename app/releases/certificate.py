"""The certificate of a release: what may be claimed about its privacy, and all that the claim rests on.

Signed JSON. Its texts are fixed English, since they are part of what is signed. A number that is not
accompanied by unit, relation, sampling, adversary, delta and accountant claims nothing and is not written.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.budget.joint import Paid
from app.budget.queries import AccountView
from app.core.canonical import canonical_bytes, canonical_sha256
from app.releases import population, statements
from app.releases.members import member_digests

VERSION = 5
"""Since 3 every tensor has a digest, and what is signed is the list of all members' digests. Since 4 the
population's claim says for which unit, under which relation and against whom. Since 5 it names the canaries
that take places in the run's rounds, and an audit may be of the run."""
ALGORITHM = "EdDSA"
Sign = Callable[[bytes], tuple[str, bytes]]
"""Signs bytes: (key id, signature)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A release that this run, or a run before it, started from."""

    release_id: UUID
    run_id: UUID
    trust: str
    epsilon: float | None
    delta: float | None
    refuted: bool
    """Whether an audit refuted its run's claim."""
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
    tensors: Sequence[Mapping[str, Any]]
    """Of the adapter's file: what app.releases.tensors.tensor_digests finds in it."""
    adapter_config_sha256: str
    """Of adapter_config.json in its canonical form, which is how it is served."""
    previous: str | None
    """SHA-256 of the canonical form of the certificate before it in the run, signature included."""
    steps: int
    """Noised steps that were priced: under `central` the rounds, else every client's own."""
    manifest: dict[str, Any]
    manifest_sha256: str
    price: dict[str, Any]
    rounds_aggregated: Sequence[int]
    clients: int
    accounts: Sequence[AccountView]
    paid: Collection[Paid]
    """What all runs are about that any of these accounts ever paid for, this one included."""
    ancestors: Sequence[Ancestor]
    unclaimed_runs: int
    """Started runs with trust `none`, or that an audit refuted, in which data of this run took part: no sum
    can cover them."""
    canaries: int
    """How many take places in the run's rounds beside the clients."""
    audit: Mapping[str, Any] | None
    """The report that the plan asked for, when it was made, and how many of its kind there were until now."""
    seals_at_deadline: bool
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
            "tensors": [dict(tensor) for tensor in facts.tensors],
            "adapter_config_sha256": facts.adapter_config_sha256,
            "base_model": manifest["base_model"],
            "lora_method": manifest["lora"]["method"],
            "parents": [str(ancestor.release_id) for ancestor in facts.ancestors],
        },
        "manifest_sha256": facts.manifest_sha256,
        "previous": facts.previous,
        "ledger": ledger_of(facts.accounts),
        "privacy": _privacy(facts),
    }


def sign(content: dict[str, Any], signer: Sign) -> dict[str, Any]:
    """Add the signature, over the canonical bytes of all members' digests."""
    members = member_digests(content)
    kid, signature = signer(canonical_bytes(members))
    value = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    return content | {"signature": {"kid": kid, "alg": ALGORITHM, "members": members, "value": value}}


def _privacy(facts: Facts) -> dict[str, Any]:
    trust = facts.manifest["privacy"]["trust"]
    if trust == "none":
        return _no_claim(trust, "This run used no privacy mechanism. Nothing is claimed.")
    if any((one.trust == "none" or one.refuted) and one.shares_clients for one in facts.ancestors):
        return _no_claim(
            trust,
            "This run started from an adapter that was trained on data of the same clients without a privacy "
            "mechanism, or by one whose claim an audit refuted. Its own noise cannot take that back. Nothing "
            "is claimed.",
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
        "unit": privacy["unit"],
        "relation": privacy["relation"],
        "cohort": privacy["cohort"],
        "examples": privacy["examples"],
        "clip_norm": privacy["clip_norm"],
        "noise_multiplier": price["noise_multiplier"],
        "divisor": privacy["divisor"],
        "steps": facts.steps,
        **_canaries(facts),
        "this_run": {
            "epsilon": price["epsilon"],
            "delta": price["delta"],
            "accountant": price["accountant"],
            "covers": _covered(manifest),
        },
        "population": population.claim_of(facts.accounts, facts.paid, unclaimed_runs=facts.unclaimed_runs),
        "starts_from": [_start(ancestor) for ancestor in facts.ancestors],
        **statements.meanings_of(privacy, seals_at_deadline=facts.seals_at_deadline),
        **_particulars(manifest, price),
        **_audit(facts),
    }


def _covered(manifest: dict[str, Any]) -> str:
    buffered = manifest.get("buffered")
    if buffered is not None:
        return (
            f"at most {buffered['participations']} updates of each client in {manifest['rounds']} buffered "
            "rounds, as committed before the first of them; who sends, and when, is public"
        )
    covered = f"all {manifest['rounds']} rounds, as committed before the first of them"
    if manifest["lora"]["method"] == "fedask":
        covered += "; clients train in odd rounds alone, and even ones send no more about their data"
    return covered


def _particulars(manifest: dict[str, Any], price: dict[str, Any]) -> dict[str, Any]:
    """What only some plans have: buffers, steps of a client's own, a person's rule with its price by data
    sets, a clip norm that moves."""
    privacy = manifest["privacy"]
    found: dict[str, Any] = {}
    if privacy["trust"] == "local":
        found["local_steps"] = manifest["training"]["local_steps"]
    if manifest.get("buffered") is not None:
        found["participations"] = manifest["buffered"]["participations"]
    if privacy.get("person") is not None:
        found |= {"person": privacy["person"], "epsilon_by_silos": price["epsilon_by_silos"]}
    if privacy.get("adaptive_clip") is not None:
        found |= {
            "adaptive_clip": privacy["adaptive_clip"],
            "clip_noise_multiplier": price["clip_noise_multiplier"],
            "adaptive_clip_means": statements.ADAPTIVE_CLIP,
        }
    return found


def _canaries(facts: Facts) -> dict[str, Any]:
    """The canaries that the price is for as well, and what their audit will be opened with."""
    if not facts.canaries:
        return {}
    return {
        "canaries": facts.canaries,
        "canaries_commitment": facts.manifest["privacy"]["audit"]["commitment"],
        "canaries_mean": statements.CANARIES,
    }


def _audit(facts: Facts) -> dict[str, Any]:
    """What an attack on the mechanism found, beside the bound and never in its place."""
    if facts.audit is None:
        return {}
    report = facts.audit["report"]
    reaches = report["largest_reachable"] > report["claimed_epsilon"]
    kind = "run" if facts.canaries else facts.manifest["privacy"]["trust"]
    said = statements.audit_of(kind, can_refute=reaches)
    return {"audit": {**facts.audit, "can_refute": reaches, **said}}


def ledger_of(accounts: Sequence[AccountView]) -> dict[str, Any]:
    """One commitment over the heads of all accounts that pay, in the order of their ids; names none of them.

    Whoever holds the heads computes it again; whoever changes an entry later has another head.
    """
    heads = [account.head_hash for account in sorted(accounts, key=lambda account: account.id)]
    return {"accounts": len(heads), "heads_sha256": canonical_sha256(heads)}


def _start(ancestor: Ancestor) -> dict[str, Any]:
    return {
        "release_id": str(ancestor.release_id),
        "run_id": str(ancestor.run_id),
        "trust": ancestor.trust,
        "epsilon": ancestor.epsilon,
        "delta": ancestor.delta,
        "same_clients": ancestor.shares_clients,
    }
