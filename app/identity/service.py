"""Organisations, their members, and switching training clients off and on."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.crypto import Vault
from app.core.db import notify
from app.core.errors import Conflict, IllegalTransition, Invalid, NotFound
from app.core.i18n import _
from app.core.ids import new_id
from app.identity import queries
from app.identity.emails import give_email, look_up_hash
from app.identity.keys import CHANNEL
from app.identity.models import Client, ClientState, Member, MemberKind, Organisation
from app.identity.permissions import Scope, require_grantable, scope_of
from app.identity.roles import Principal, Role

BOOTSTRAP = "bootstrap"
"""Who acts where nobody was there yet."""


class NameTaken(Conflict):
    """Another object of this kind has the name."""

    code, title = "name_taken", _("Name taken")
    meaning = _("Names of organisations are unique in the federation.")
    remedy = _("Choose another name.")


class EmailTaken(Conflict):
    """Another member has the address."""

    code, title = "email_taken", _("E-mail address taken")
    meaning = _("An e-mail address belongs to one member of the federation, who signs in with it.")
    remedy = _("Use another address, or move the member who has it.")


def create_organisation(session: Session, principal: Principal, *, name: str, region: str) -> Organisation:
    """Add a party to the federation; raises NameTaken."""
    scope_of(principal, "organisations:create")
    return add_organisation(session, name=name, region=region, actor=principal.actor)


def add_organisation(session: Session, *, name: str, region: str, actor: str = BOOTSTRAP) -> Organisation:
    """The same, without a caller: for bootstrap."""
    created: Organisation | None = session.scalar(
        insert(Organisation)
        .values(id=new_id(), name=name, region=region)
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(Organisation)
    )
    if created is None:
        raise NameTaken(_("an organisation has this name already"))
    record(
        session,
        action=Action.ORGANISATION_CREATED,
        actor=actor,
        organisation_id=created.id,
        subject=f"organisation:{created.id}",
        details={"region": region},
        committed={"name": name},
    )
    return created


def limit_organisation(
    session: Session, principal: Principal, organisation_id: UUID, *, epsilon_ceiling: float | None
) -> Organisation:
    """Cap what any account of an organisation may be granted; raises NotFound."""
    reaches_all = scope_of(principal, "organisations:limit") is Scope.FEDERATION
    row = session.get(Organisation, organisation_id, with_for_update=True)
    if row is None or not (reaches_all or row.id == principal.organisation_id):
        raise NotFound(_("there is no such organisation"))
    row.epsilon_ceiling = epsilon_ceiling
    session.flush()
    record(
        session,
        action=Action.ORGANISATION_LIMITED,
        actor=principal.actor,
        organisation_id=row.id,
        subject=f"organisation:{row.id}",
        details={"epsilon_ceiling": None if epsilon_ceiling is None else repr(epsilon_ceiling)},
    )
    return row


def create_member(
    session: Session,
    principal: Principal,
    vault: Vault,
    *,
    organisation_id: UUID,
    name: str,
    role: Role,
    kind: MemberKind = MemberKind.PERSON,
    email: str | None = None,
) -> Member:
    """Add a person or an automation to an organisation. Training clients enrol instead.

    A person with an e-mail is invited next (password_tokens.issue); a service account gets API keys only.
    """
    scope_of(principal, "members:create")
    if role is Role.CLIENT:
        raise Invalid(_("a training client is enrolled, not added as a member"))
    if kind is MemberKind.SERVICE and email is not None:
        raise Invalid(_("a service account has no e-mail address and no password"))
    require_grantable(principal, role)
    if session.get(Organisation, organisation_id) is None:
        raise NotFound(_("there is no such organisation"))
    member = Member(organisation_id=organisation_id, name=name, role=role, kind=kind)
    _add(session, vault, member, email)
    record(
        session,
        action=Action.MEMBER_CREATED,
        actor=principal.actor,
        organisation_id=organisation_id,
        subject=f"member:{member.id}",
        details={"role": str(role), "kind": str(kind)},
        committed={"name": name},
    )
    return member


def _add(session: Session, vault: Vault, member: Member, email: str | None) -> None:
    if email is not None:
        if _is_taken(session, vault, email):
            raise EmailTaken(_("a member has this e-mail address already"))
        give_email(vault, member, email)
    session.add(member)
    try:
        with session.begin_nested():
            session.flush()
    except IntegrityError as error:  # somebody else has just added the same address
        raise EmailTaken(_("a member has this e-mail address already")) from error


def _is_taken(session: Session, vault: Vault, email: str) -> bool:
    owner = sa.select(Member.id).where(Member.email_hash == look_up_hash(vault, email))
    return session.scalar(owner) is not None


def set_client_state(session: Session, principal: Principal, client_id: UUID, state: ClientState) -> Client:
    """Suspend or reinstate a training client. Its running tokens stop or work again in every process.

    The announcement travels with the commit, so no process forgets too early.
    """
    statement = queries.clients(principal, "clients:suspend").where(Client.id == client_id)
    row = session.scalar(statement.with_for_update())
    if row is None:
        raise NotFound(_("there is no such client"))
    if row.state not in {ClientState.ACTIVE, ClientState.SUSPENDED}:
        raise IllegalTransition(_("the client is {state}"), state=row.state.value)
    if row.state is not state:
        row.state = state
        notify(session, CHANNEL, str(client_id))
        is_off = state is ClientState.SUSPENDED
        record(
            session,
            action=Action.CLIENT_SUSPENDED if is_off else Action.CLIENT_REINSTATED,
            actor=principal.actor,
            organisation_id=row.organisation_id,
            subject=f"client:{client_id}",
        )
    session.flush()
    return row
