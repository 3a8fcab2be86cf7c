"""Organisations, members, their API keys, and switching training clients off and on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core import clock
from app.core.crypto import Vault
from app.core.db import notify
from app.core.errors import Conflict, Forbidden, Invalid, NotFound
from app.core.i18n import _
from app.core.ids import new_id
from app.identity import queries
from app.identity.authentication import API_KEY_PURPOSE, CHANNEL
from app.identity.credentials import mint_api_key
from app.identity.models import ApiKey, Client, ClientState, Member, Organisation
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal, Role

BOOTSTRAP = "bootstrap"
"""Who acts where nobody was there yet."""


class NameTaken(Conflict):
    """Another object of this kind has the name."""

    code, title = "name_taken", _("Name taken")
    meaning = _("Names of organisations are unique in the federation.")
    remedy = _("Choose another name.")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new API key; `text` exists nowhere else from now on."""

    row: ApiKey
    text: str


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
    session: Session, principal: Principal, *, organisation_id: UUID, name: str, role: Role
) -> Member:
    """Add a person or an automation to an organisation. Training clients enrol instead."""
    scope_of(principal, "members:create")
    if role is Role.CLIENT:
        raise Invalid(_("a training client is enrolled, not added as a member"))
    if session.get(Organisation, organisation_id) is None:
        raise NotFound(_("there is no such organisation"))
    member = Member(organisation_id=organisation_id, name=name, role=role)
    session.add(member)
    session.flush()
    record(
        session,
        action=Action.MEMBER_CREATED,
        actor=principal.actor,
        organisation_id=organisation_id,
        subject=f"member:{member.id}",
        details={"role": str(role)},
        committed={"name": name},
    )
    return member


def create_api_key(
    session: Session,
    principal: Principal,
    vault: Vault,
    *,
    member_id: UUID | None,
    label: str,
    expires_in_s: int | None,
) -> NewKey:
    """Make a key for the caller, or (administrators) for another member."""
    owner_id = member_id or principal.id
    if owner_id != principal.id and scope_of(principal, "api_keys:create") is not Scope.FEDERATION:
        raise NotFound(_("there is no such member"))
    owner = session.get(Member, owner_id)
    if owner is None:
        raise NotFound(_("there is no such member"))
    if owner.suspended_at is not None:
        raise Forbidden(_("a suspended member gets no key"))
    return add_api_key(
        session, vault, member_id=owner.id, label=label, expires_in_s=expires_in_s, actor=principal.actor
    )


def add_api_key(
    session: Session,
    vault: Vault,
    *,
    member_id: UUID,
    label: str,
    expires_in_s: int | None,
    actor: str = BOOTSTRAP,
) -> NewKey:
    """The same, without a caller: for bootstrap."""
    minted = mint_api_key()
    row = ApiKey(
        member_id=member_id,
        key_id=minted.key_id,
        secret_hmac=vault.fingerprint(API_KEY_PURPOSE, minted.text),
        label=label,
        expires_at=None if expires_in_s is None else clock.now() + timedelta(seconds=expires_in_s),
    )
    session.add(row)
    session.flush()
    _note_key(session, Action.API_KEY_CREATED, row, actor=actor)
    return NewKey(row=row, text=minted.text)


def _note_key(session: Session, action: Action, row: ApiKey, *, actor: str) -> None:
    record(
        session,
        action=action,
        actor=actor,
        organisation_id=session.get_one(Member, row.member_id).organisation_id,
        subject=f"api_key:{row.id}",
        details={
            "member_id": str(row.member_id),
            "expires_at": None if row.expires_at is None else row.expires_at.isoformat(),
        },
        committed={"label": row.label},
    )


def revoke_api_key(session: Session, principal: Principal, api_key_id: UUID) -> None:
    """Make a key useless from the next request on. Revoking twice is revoking once."""
    statement = queries.api_keys(principal, "api_keys:revoke").where(ApiKey.id == api_key_id)
    row = session.scalar(statement.with_for_update())
    if row is None:
        raise NotFound(_("there is no such API key"))
    if row.revoked_at is None:
        row.revoked_at = clock.now()
        _note_key(session, Action.API_KEY_REVOKED, row, actor=principal.actor)


def set_client_state(session: Session, principal: Principal, client_id: UUID, state: ClientState) -> Client:
    """Suspend or reinstate a training client. Its running tokens stop or work again in every process.

    The announcement travels with the commit, so no process forgets too early.
    """
    statement = queries.clients(principal, "clients:suspend").where(Client.id == client_id)
    row = session.scalar(statement.with_for_update())
    if row is None:
        raise NotFound(_("there is no such client"))
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
