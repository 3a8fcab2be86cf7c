"""What a plan costs: calibrates or checks its noise, prices it by round, and builds the first adapter.

Which steps and which sampling are priced depends on who adds the noise: engines/privacy/schedule.py.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from app.core.crypto import Vault
from app.core.i18n import _
from app.custody.blobs import TenantBlobs
from app.jobs import leases
from app.jobs.leases import Claim
from app.runs import queries, service
from app.runs.manifest import MOST_CANARIES, Manifest, Privacy
from engines.lora.adapter import initial_adapter
from engines.privacy.accounting import (
    ACCOUNTANT,
    AccountingFailed,
    GaussianRun,
    ImpossiblePlan,
    calibrate_noise_multiplier,
    epsilon_by_round,
    epsilon_pld,
    epsilon_rdp,
    rdp_at_order,
)
from engines.privacy.adaptive_clip import AdaptiveClip
from engines.privacy.audit_reach import can_refute, canaries_that_can_refute, claim_of_one_sum
from engines.privacy.membership import greatest_true_positive_rate
from engines.privacy.schedule import schedule_of
from workers.canaries import canaries_of
from workers.checkpoints import reach
from workers.context import ACTOR, Context
from workers.sketches import start_of
from workers.tensors import write_tensors

IMPOSSIBLE = (
    "impossible_plan",
    _("No amount of noise reaches this epsilon: plan fewer steps, a lower rate, or a larger epsilon."),
)
NOT_PRICEABLE = (
    "not_priceable",
    _("The accountant has no trustworthy bound for this plan: plan more noise, fewer steps or a lower rate."),
)
OVER_TARGET = (
    "epsilon_exceeded",
    _("The noise multiplier that the plan names costs more than the epsilon that it names."),
)
ORDER_NOT_PRICEABLE = (
    "order_not_priceable",
    _("The plan has no Renyi price at the order of one of the accounts that would pay for it."),
)
CANNOT_REFUTE = "audit_cannot_refute"
"""The code of an audit that would show nothing; its reason names what would."""
TAKES_TOO_LONG = (
    "pricing_too_long",
    _("The plan could not be priced in the time that a price may take: plan fewer rounds or a lower rate."),
)
LONGEST_S = 180.0
"""What takes longer is refused, before the job's own limit would kill it and have it tried again."""
NOTHING_CLAIMED: dict[str, Any] = {
    "noise_multiplier": None,
    "epsilon": None,
    "delta": None,
    "epsilon_by_round": [],
    "epsilon_rdp": None,
    "epsilon_by_silos": {},
    "clip_noise_multiplier": None,
    "attack_tpr_at_1_percent": None,
    "canaries": 0,
    "accountant": None,
    "rdp": {},
}


class Refused(Exception):
    """The plan cannot be run; the arguments are the stable code and the reason."""

    def __init__(self, refusal: tuple[str, str]) -> None:
        super().__init__(refusal[0])
        self.code, self.reason = refusal


def run(context: Context, claim: Claim) -> None:
    """Price a run and let it become `priced` or `refused`; a run that has moved on is left alone."""
    run_id, version = UUID(claim.payload["run_id"]), int(claim.payload["version"])
    with context.database.run_tx("price read") as session:
        facts = queries.pricing_facts(session, run_id, version)
        if facts is None:
            leases.finish(session, claim)
            return
    manifest = Manifest.model_validate(facts.manifest)
    try:
        with _at_most(LONGEST_S):
            price = price_of(manifest, orders=facts.orders)
        price["canaries_commitment"] = commitment_of(manifest, context.vault, run_id)
    except Refused as refusal:
        with context.database.run_tx("price refuse") as session:
            leases.finish(session, claim)
            service.refuse(
                session, run_id, version=version, code=refusal.code, reason=refusal.reason, actor=ACTOR
            )
        return
    reach("price.after_compute")
    former = facts.start_adapter
    own = context.blobs.of(facts.organisation_id)
    if former is None:
        start = _first_adapter(own, manifest)
    else:
        start = start_of(own.beside(former.tenant), former.sha256, blobs=own)
    reach("price.after_blob")
    with context.database.run_tx("price accept") as session:
        leases.finish(session, claim)
        service.accept_price(
            session, run_id, version=version, price=price, start_adapter_sha256=start, actor=ACTOR
        )


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block and raise Refused when it takes longer; for the main thread of a worker."""

    def refuse(_number: int, _frame: object) -> None:
        raise Refused(TAKES_TOO_LONG)

    former = signal.signal(signal.SIGALRM, refuse)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def price_of(manifest: Manifest, *, orders: tuple[float, ...]) -> dict[str, Any]:
    """Price the whole schedule of a manifest; raises Refused. Nothing is claimed under trust `none`."""
    privacy = manifest.privacy
    if privacy.trust == "none" or privacy.delta is None:
        return NOTHING_CLAIMED
    try:
        plan = _schedule(manifest, delta=privacy.delta)
        by_order = {str(order): _divergence(plan, order) for order in orders}
        epsilon = epsilon_pld([plan], delta=privacy.delta)
        by_round = epsilon_by_round(plan, rounds=manifest.trainings, delta=privacy.delta)
        by_round += by_round[-1:] * (manifest.participations - manifest.trainings)
        by_silos = _by_silos(manifest, plan, epsilon=epsilon, delta=privacy.delta)
        clip_noise_multiplier = _clip_noise_multiplier(manifest, plan)
    except ImpossiblePlan as error:
        raise Refused(IMPOSSIBLE) from error
    except (AccountingFailed, ValueError) as error:
        raise Refused(NOT_PRICEABLE) from error
    if privacy.epsilon is not None and epsilon > privacy.epsilon:
        raise Refused(OVER_TARGET)
    _require_reach(privacy, noise_multiplier=plan.noise_multiplier, epsilon=epsilon)
    return {
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": epsilon,
        "delta": privacy.delta,
        "epsilon_by_round": list(by_round),
        "epsilon_rdp": _rdp_for_information(plan, delta=privacy.delta),
        "epsilon_by_silos": by_silos,
        "clip_noise_multiplier": clip_noise_multiplier,
        "accountant": ACCOUNTANT,
        "rdp": by_order,
        "attack_tpr_at_1_percent": _attack_for_information(plan),
        "canaries": privacy.canaries,
    }


def _schedule(manifest: Manifest, *, delta: float) -> GaussianRun:
    """The schedule with the multiplier that the plan names, or with the least that reaches its epsilon."""
    privacy = manifest.privacy
    terms = manifest.as_json()["privacy"] | {"steps": manifest.steps, "canaries": privacy.canaries}
    if privacy.noise_multiplier is not None:
        return schedule_of(terms)
    if privacy.epsilon is None:
        raise Refused(NOT_PRICEABLE)
    searched = schedule_of(terms | {"noise_multiplier": 1.0})
    found = calibrate_noise_multiplier(
        epsilon=privacy.epsilon,
        delta=delta,
        sampling_rate=searched.sampling_rate,
        steps=searched.steps,
        relation=searched.relation,
        capped=searched.capped,
    )
    return dataclasses.replace(searched, noise_multiplier=found)


def _require_reach(privacy: Privacy, *, noise_multiplier: float, epsilon: float) -> None:
    """Refuse a plan whose audit could not refute its claim however broken the code were.

    With canaries in the rounds that is the run's whole epsilon, else the price of one sum.
    """
    if privacy.audit is None or privacy.delta is None:
        return
    try:
        claimed = epsilon if privacy.canaries else claim_of_one_sum(noise_multiplier, delta=privacy.delta)
    except (AccountingFailed, ValueError) as error:
        raise Refused(NOT_PRICEABLE) from error
    if can_refute(privacy.audit.canaries, claimed_epsilon=claimed, delta=privacy.delta):
        return
    enough = canaries_that_can_refute(claimed_epsilon=claimed, delta=privacy.delta, most=MOST_CANARIES)
    reason = _(
        "An audit with {canaries} canaries cannot refute an epsilon of {claimed}, whatever the code does: "
        "plan {enough} canaries."
    )
    if enough is None:
        reason = _(
            "No audit that a plan can ask for refutes an epsilon of {claimed}, whatever the code does: plan "
            "more noise, or no audit."
        )
    told = {"canaries": privacy.audit.canaries, "claimed": f"{claimed:.3f}", "enough": enough}
    raise Refused((CANNOT_REFUTE, reason.format_map(told)))


def commitment_of(manifest: Manifest, vault: Vault, run_id: UUID) -> str | None:
    """What a run's manifest will commit to before its first round; None without canaries in its rounds."""
    if not manifest.privacy.canaries:
        return None
    return canaries_of(manifest, vault, run_id).commitment


def _by_silos(manifest: Manifest, plan: GaussianRun, *, epsilon: float, delta: float) -> dict[str, float]:
    """Epsilon of a person whose records are in one data set, and in as many as the plan declares."""
    person = manifest.privacy.person
    if person is None:
        return {}
    every = dataclasses.replace(plan, steps=plan.steps * person.silos)
    return {"1": epsilon, str(person.silos): epsilon_pld([every], delta=delta)}


def _clip_noise_multiplier(manifest: Manifest, plan: GaussianRun) -> float | None:
    """What adaptive clipping leaves of the plan's multiplier to the sum; ValueError where nothing is left."""
    bound = manifest.privacy.adaptive_clip
    if bound is None:
        return None
    adaptive = AdaptiveClip(
        bit_std=bound.bit_noise,
        expected_cohort=1.0,  # moves the clip norm, not its price
        target=bound.quantile,
        learning_rate=bound.learning_rate,
    )
    return adaptive.sum_multiplier(plan.noise_multiplier)


def _rdp_for_information(plan: GaussianRun, *, delta: float) -> float | None:
    """The Renyi accountant's epsilon beside the claim; None where it has no bound for this sampling."""
    try:
        return epsilon_rdp([plan], delta=delta)
    except (AccountingFailed, ValueError):
        return None


def _attack_for_information(plan: GaussianRun) -> float | None:
    """The best membership attack at 1 % false positives; None where only epsilon itself bounds it."""
    try:
        return greatest_true_positive_rate([plan])
    except (AccountingFailed, ValueError):
        return None


def _divergence(plan: GaussianRun, order: float) -> float:
    try:
        return rdp_at_order([plan], order=order)
    except (AccountingFailed, ValueError) as error:
        raise Refused(ORDER_NOT_PRICEABLE) from error


def _first_adapter(blobs: TenantBlobs, manifest: Manifest) -> str:
    tensors = [tensor.model_dump(mode="json") for tensor in manifest.tensors]
    trained = initial_adapter(tensors, manifest.lora.seed, trained_only=True)
    digest, _size_bytes = write_tensors(blobs, trained)
    return digest
