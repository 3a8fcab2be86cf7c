"""How acts on members and training clients are noted in the audit log: always whose, never by name."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.audit.record import Action, Detail, record
from app.identity.models import Client, Member


def note_member(session: Session, action: Action, member: Member, *, actor: str, **details: Detail) -> None:
    """Note an act on a member, for the auditors of the member's organisation."""
    record(
        session,
        action=action,
        actor=actor,
        organisation_id=member.organisation_id,
        subject=f"member:{member.id}",
        details=details,
    )


def note_client(session: Session, action: Action, client: Client, *, actor: str, **details: Detail) -> None:
    """Note an act on a training client, for the auditors of its organisation."""
    record(
        session,
        action=action,
        actor=actor,
        organisation_id=client.organisation_id,
        subject=f"client:{client.id}",
        details=details,
    )
