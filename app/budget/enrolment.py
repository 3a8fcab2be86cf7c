"""From an invitation to a training client and its data set's account: both come into being, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.budget import arithmetic, ledger
from app.budget.arithmetic import AmountInvalid, CeilingNotPositive
from app.budget.models import AccountKind
from app.budget.queries import AccountView, account_of_client, account_view
from app.core.crypto import Vault
from app.core.db import act_as
from app.core.i18n import _
from app.identity import enrolments
from app.identity.enrolments import Application, NewEnrolment
from app.identity.models import Approval, Client
from app.identity.roles import Principal, Role


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A training client with its account."""

    client: Client
    account: AccountView


def invite(
    session: Session,
    principal: Principal,
    vault: Vault,
    *,
    organisation_id: UUID,
    region: str,
    budget: dict[str, Any],
    default: tuple[float, float],
    expires_in_s: int,
    approval: Approval = Approval.AUTOMATIC,
    jurisdiction: str | None = None,
) -> NewEnrolment:
    """Invite one training client under terms with which its account can be opened, and hold a run."""
    made = enrolments.create_enrolment(
        session,
        principal,
        vault,
        organisation_id=organisation_id,
        region=region,
        budget=budget,
        default=default,
        expires_in_s=expires_in_s,
        approval=approval,
        jurisdiction=jurisdiction,
    )
    _require_usable(budget)
    ledger.require_within_organisation(session, organisation_id, epsilon=budget["epsilon"])
    return made


def _require_usable(terms: dict[str, Any]) -> None:
    """Refuse what no run whatever could be paid from."""
    kind, order = AccountKind(terms["kind"]), terms.get("order")
    amount, delta_amount = ledger.granted(kind, terms["epsilon"], terms["delta"], order)
    if order is None:
        if amount == 0 or delta_amount == 0:
            raise AmountInvalid(_("epsilon or delta is too small for the ledger to hold any of it"))
    elif amount < arithmetic.cost(arithmetic.LEAST_RENYI_CHARGE / (order - 1)):
        raise CeilingNotPositive(
            _("order {order} leaves no budget within epsilon {epsilon} and delta {delta}"),
            order=order,
            epsilon=terms["epsilon"],
            delta=terms["delta"],
        )


def enrol(session: Session, vault: Vault, application: Application, *, population: str) -> Enrolled:
    """Redeem the invitation and open the account under its terms, in the caller's one transaction.

    Asked again by the same client with the same token, it answers with what there is and grants nothing.
    """
    client, enrolment, is_new = enrolments.redeem(session, vault, application)
    if not is_new:
        return Enrolled(client=client, account=account_of_client(session, client.id))
    actor = Principal(id=client.id, organisation_id=client.organisation_id, role=Role.CLIENT).actor
    act_as(session, actor)
    record(
        session,
        action=Action.CLIENT_ENROLLED,
        actor=actor,
        organisation_id=client.organisation_id,
        subject=f"client:{client.id}",
        details={
            "enrolment_id": str(enrolment.id),
            "region": client.region,
            "public_key": client.public_key.hex(),
        },
        committed={"name": client.name},
    )
    terms = enrolment.budget
    account_id = ledger.open_account(
        session,
        organisation_id=client.organisation_id,
        client_id=client.id,
        population=population,
        kind=terms["kind"],
        epsilon=terms["epsilon"],
        delta=terms["delta"],
        order=terms.get("order"),
        unit=terms.get("unit", "example"),
        actor=actor,
    )
    return Enrolled(client=client, account=account_view(session, account_id))
