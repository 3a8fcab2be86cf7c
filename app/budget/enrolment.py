"""A training client and the account of its data set come into being together, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.budget import ledger
from app.budget.queries import AccountView, account_of_client, account_view
from app.core.crypto import Vault
from app.core.db import act_as
from app.identity import enrolments
from app.identity.enrolments import Application
from app.identity.models import Client
from app.identity.roles import Principal, Role


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A training client with its account."""

    client: Client
    account: AccountView


def enrol(session: Session, vault: Vault, application: Application, *, population: str) -> Enrolled:
    """Redeem the invitation and open the account under its terms, in the caller's one transaction.

    Asked again by the same client with the same token, it answers with what there is and grants nothing.
    """
    client, enrolment, is_new = enrolments.redeem(session, vault, application)
    if not is_new:
        return Enrolled(client=client, account=account_of_client(session, client.id))
    actor = Principal(id=client.id, organisation_id=client.organisation_id, role=Role.CLIENT).actor
    act_as(session, actor)
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
