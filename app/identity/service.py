"""Organisations, members, their API keys, and switching training clients off and on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

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
    return add_organisation(session, name=name, region=region)


def add_organisation(session: Session, *, name: str, region: str) -> Organisation:
    """The same, without a caller: for bootstrap."""
    created: Organisation | None = session.scalar(
        insert(Organisation)
        .values(id=new_id(), name=name, region=region)
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(Organisation)
    )
    if created is None:
        raise NameTaken(_("an organisation has this name already"))
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
    return add_api_key(session, vault, member_id=owner.id, label=label, expires_in_s=expires_in_s)


def add_api_key(
    session: Session, vault: Vault, *, member_id: UUID, label: str, expires_in_s: int | None
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
    return NewKey(row=row, text=minted.text)


def revoke_api_key(session: Session, principal: Principal, api_key_id: UUID) -> None:
    """Make a key useless from the next request on. Revoking twice is revoking once."""
    statement = queries.api_keys(principal, "api_keys:revoke").where(ApiKey.id == api_key_id)
    row = session.scalar(statement.with_for_update())
    if row is None:
        raise NotFound(_("there is no such API key"))
    if row.revoked_at is None:
        row.revoked_at = clock.now()


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
    session.flush()
    return row
