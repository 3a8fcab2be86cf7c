"""What administrators do with members: another role, another organisation, off and on again.

Each of these ends the member's sessions, in every process from the commit on.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.record import Action
from app.core import clock
from app.core.errors import Conflict, NotFound
from app.core.i18n import _
from app.identity import queries
from app.identity.models import (
    ApiKey,
    Member,
    OidcIdentity,
    Organisation,
    PasswordToken,
    SessionEnd,
)
from app.identity.noting import note_member
from app.identity.permissions import require_grantable
from app.identity.roles import Principal, Role
from app.identity.sessions import end_all

LEAST = Role.VIEWER
"""The role of who has just come to an organisation."""


class OwnMember(Conflict):
    """Nobody changes their own standing."""

    code, title = "own_member", _("Your own account")
    meaning = _(
        "Nobody changes their own role, organisation or standing: the last administrator could be lost."
    )
    remedy = _("Ask another administrator.")


def change_role(session: Session, principal: Principal, member_id: UUID, *, role: Role) -> Member:
    """Give a member another role, of what the caller holds. Raises NotFound, Forbidden, OwnMember."""
    member = _other(session, principal, member_id, "members:update")
    require_grantable(principal, role)
    if member.role is not role:
        former, member.role = member.role, role
        end_all(session, member, SessionEnd.CHANGED)
        told = {"role": role.value, "former": former.value}
        note_member(session, Action.MEMBER_CHANGED, member, actor=principal.actor, **told)
    return member


def suspend(session: Session, principal: Principal, member_id: UUID) -> Member:
    """Switch a member off: neither sessions nor API keys work."""
    member = _other(session, principal, member_id, "members:update")
    if member.suspended_at is None:
        member.suspended_at = clock.now()
        end_all(session, member, SessionEnd.CHANGED)
        note_member(session, Action.MEMBER_SUSPENDED, member, actor=principal.actor)
    return member


def reinstate(session: Session, principal: Principal, member_id: UUID) -> Member:
    """Switch a member on again; sessions of before stay ended."""
    member = _other(session, principal, member_id, "members:update")
    if member.suspended_at is not None:
        member.suspended_at = None
        end_all(session, member, SessionEnd.CHANGED)
        note_member(session, Action.MEMBER_REINSTATED, member, actor=principal.actor)
    return member


def end_sessions(session: Session, principal: Principal, member_id: UUID) -> None:
    """Sign a member out everywhere."""
    member = queries.member(session, principal, member_id, "members:update", lock=True)
    end_all(session, member, SessionEnd.EVERYWHERE)
    note_member(session, Action.MEMBER_SIGNED_OUT, member, actor=principal.actor)


def move(session: Session, principal: Principal, member_id: UUID, *, organisation_id: UUID) -> Member:
    """Move a member to another organisation, where they begin with the least role.

    Nothing of what they held goes along: API keys are revoked, unused password tokens and the bond to an
    issuer of the former organisation end.
    """
    member = _other(session, principal, member_id, "members:move")
    if session.get(Organisation, organisation_id) is None:
        raise NotFound(_("there is no such organisation"))
    if member.organisation_id == organisation_id:
        return member
    left = str(member.organisation_id)
    member.organisation_id, member.role = organisation_id, LEAST
    moment = clock.now()
    session.execute(
        sa.update(ApiKey)
        .where(ApiKey.member_id == member.id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=moment)
    )
    session.execute(
        sa.update(PasswordToken)
        .where(PasswordToken.member_id == member.id, PasswordToken.used_at.is_(None))
        .values(expires_at=sa.func.least(PasswordToken.expires_at, moment))
    )
    session.execute(sa.delete(OidcIdentity).where(OidcIdentity.member_id == member.id))
    end_all(session, member, SessionEnd.CHANGED)
    note_member(session, Action.MEMBER_MOVED, member, actor=principal.actor, former_organisation_id=left)
    return member


def _other(session: Session, principal: Principal, member_id: UUID, permission: str) -> Member:
    """A member, locked, on whom the caller may act: not the caller, and nobody who holds more."""
    member = queries.member(session, principal, member_id, permission, lock=True)
    if member.id == principal.id:
        raise OwnMember(_("this is your own account"))
    require_grantable(principal, member.role)
    return member
