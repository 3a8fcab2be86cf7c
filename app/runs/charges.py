"""What a run costs on an account, in the ledger's integers, from the price job's numbers alone.

A `basic` account pays the PLD epsilon and the delta of the whole pre-committed schedule; a `renyi` account
pays the schedule's divergence at its own order, its delta being part of its ceiling already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.budget import arithmetic
from app.budget.joint import REPLACE_ONE, Terms
from app.budget.queries import AccountView, covers
from app.core.errors import Conflict, Invalid
from app.core.i18n import _
from app.runs.canaries import seated
from app.runs.manifest import Manifest
from app.runs.models import Run


class PriceMissing(Conflict):
    """The run was priced before this account took part in it."""

    code, title = "price_missing", _("No price for this account")
    meaning = _("The run's price does not cover the kind of account that one of its clients has.")
    remedy = _("Clone the run and have it priced again.")


class UnitTooFine(Invalid):
    """A run that protects less than an account stands for."""

    code, title = "unit_too_fine", _("The plan protects less than an account stands for")
    meaning = _("An account by client or person cannot pay for a plan that protects only a finer unit.")
    remedy = _("Plan with the unit that the answer names, or replace a coarser one, or leave the client out.")


class RelationTooWeak(Invalid):
    """A run whose guarantee for a coarser unit says nothing of an account's own."""

    code, title = "relation_too_weak", _("The plan's relation promises nothing for an account's unit")
    meaning = _(
        "Under zero-out a coarser unit is protected against being left out as a whole, not against a change "
        "of one part of it, which can move a sum by twice the clip norm. The account stands for the part."
    )
    remedy = _(
        "Plan with relation `replace_one`, which covers every finer unit, or with the unit that the answer "
        "names, or leave the client out."
    )


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount and a delta in the ledger's units."""

    amount: int
    delta_amount: int


def run_ref(run_id: UUID) -> str:
    """The reference of a run's reservation."""
    return f"run:{run_id}"


def round_ref(round_id: UUID) -> str:
    """The reference of a round's spend."""
    return f"round:{round_id}"


def order_key(order: float) -> str:
    """How `price["rdp"]` names an order."""
    return repr(float(order))


def is_charged(manifest: dict[str, Any]) -> bool:
    """Say whether the run uses privacy budget at all: with trust `none` it claims nothing."""
    return bool(manifest["privacy"]["trust"] != "none")


def require_covered(manifest: dict[str, Any], account: AccountView, **members: str) -> None:
    """Let an account pay only for what holds for its own unit; raises UnitTooFine and RelationTooWeak.

    `members` are added to the answer, to say whose account it is.
    """
    terms = Terms(manifest["privacy"]["unit"], manifest["privacy"]["relation"])
    if covers(terms, account.unit):
        return
    if covers(Terms(terms.unit, REPLACE_ONE), account.unit):
        raise RelationTooWeak(
            _("under `{relation}`, unit `{planned}` covers no single `{unit}`, which an account stands for"),
            relation=terms.relation,
            planned=terms.unit,
            unit=account.unit,
            **members,
        )
    raise UnitTooFine(_("an account stands for unit `{unit}`"), unit=account.unit, **members)


def reservation(run: Run, account: AccountView) -> Charge:
    """The whole schedule of a run on this account; raises PriceMissing."""
    price = run.price or {}
    if account.order is not None:
        total = price.get("rdp", {}).get(order_key(account.order))
        if total is None:
            raise PriceMissing(_("the run has no price at order {order}"), order=account.order)
        return Charge(arithmetic.cost(total), 0)
    if price.get("epsilon") is None:
        raise PriceMissing(_("the run has no price"))
    return Charge(arithmetic.cost(price["epsilon"]), arithmetic.delta_cost(price["delta"]))


def schedule(run: Run, account: AccountView) -> list[Charge]:
    """What a client's first, second, ... update in this run spends; sums to the reservation.

    Part j is the step from j - 1 to j updates of one client, whichever rounds they belong to, so that the
    sum of what was spent is never below the cost of the updates that were sent. Under `central` a part is
    a round, drawn or not. Under `fedask` no more of them can have been trained for than there are odd rounds:
    the first parts pay for those, and later ones are free.
    """
    whole = reservation(run, account)
    manifest = Manifest.model_validate(run.manifest)
    if account.order is None:
        cumulative = [arithmetic.cost(epsilon) for epsilon in (run.price or {})["epsilon_by_round"]]
    else:
        each = -(-whole.amount // manifest.trainings)
        updates = range(1, manifest.participations + 1)
        cumulative = [each * min(number, manifest.trainings) for number in updates]
    parts = arithmetic.shares(whole.amount, cumulative)
    return [Charge(part, whole.delta_amount if number == 0 else 0) for number, part in enumerate(parts)]


def event_of(run: Run) -> dict[str, Any]:
    """The exact parameters of the mechanism, so that any accountant can price it again."""
    privacy = run.manifest["privacy"]
    return {
        "run_id": str(run.id),
        "manifest_sha256": run.manifest_sha256,
        "trust": privacy["trust"],
        "unit": privacy["unit"],
        "relation": privacy["relation"],
        "cohort": privacy["cohort"],
        "examples": privacy["examples"],
        "clip_norm": privacy["clip_norm"],
        "noise_multiplier": privacy["noise_multiplier"],
        "canaries": seated(run.manifest),
        "adaptive_clip": privacy.get("adaptive_clip"),
        "person": privacy.get("person"),
        "steps": Manifest.model_validate(run.manifest).steps,
        "delta": privacy["delta"],
        "accountant": (run.price or {}).get("accountant"),
    }
