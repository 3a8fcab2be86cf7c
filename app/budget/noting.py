"""Grants in the audit log, with their entry's hash and so with the account's whole history until then."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.budget.models import Entry


def note_grant(session: Session, organisation_id: UUID, entry: Entry) -> None:
    """Note that an account was opened, taken over or granted more; see app.budget.ledger for the refs."""
    is_opening = entry.ref == "opening" or entry.ref.startswith("takeover:")
    record(
        session,
        action=Action.BUDGET_OPENED if is_opening else Action.BUDGET_GRANTED,
        actor=entry.actor,
        organisation_id=organisation_id,
        subject=f"account:{entry.account_id}",
        details={
            "seq": entry.seq,
            "amount": str(entry.amount),
            "delta_amount": str(entry.delta_amount),
            "entry_sha256": entry.hash.hex(),
        },
        committed={"reason": entry.event["reason"]},
    )
