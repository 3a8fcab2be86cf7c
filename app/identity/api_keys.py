"""API keys: made for oneself or another, with no more rights than their maker holds; rotated; revoked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core import clock
from app.core.crypto import Vault
from app.core.errors import Conflict, Forbidden, Invalid, NotFound
from app.core.i18n import _
from app.identity import queries
from app.identity.authentication import API_KEY_PURPOSE
from app.identity.credentials import mint_api_key
from app.identity.models import ApiKey, Member
from app.identity.permissions import (
    PERMISSIONS,
    Scope,
    held_by,
    permissions_of,
    require_grantable,
    scope_of,
)
from app.identity.roles import Principal

BOOTSTRAP = "bootstrap"
"""Who acts where nobody was there yet."""


class KeyOver(Conflict):
    """The key works no more."""

    code, title = "key_over", _("The API key is over")
    meaning = _("The API key was revoked or has expired, so that none can follow it.")
    remedy = _("Make a new key.")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new API key; `text` exists nowhere else from now on."""

    row: ApiKey
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a key is to be good for."""

    label: str
    scopes: frozenset[str] | None = None
    """None: everything that its owner's role holds."""
    networks: tuple[str, ...] | None = None
    """None: from anywhere."""
    expires_at: datetime | None = None
    replaces: UUID | None = None


def create_api_key(
    session: Session,
    principal: Principal,
    vault: Vault,
    *,
    member_id: UUID | None,
    label: str,
    expires_in_s: int | None,
    scopes: Iterable[str] | None = None,
    networks: Iterable[str] | None = None,
) -> NewKey:
    """Make a key for the caller, or (administrators) for another member.

    What the caller's own credentials lack, the key lacks: permissions, networks, time. Raises NotFound,
    Forbidden and Invalid.
    """
    owner_id = member_id or principal.id
    if owner_id != principal.id and scope_of(principal, "api_keys:create") is not Scope.FEDERATION:
        raise NotFound(_("there is no such member"))
    owner = session.get(Member, owner_id)
    if owner is None:
        raise NotFound(_("there is no such member"))
    if owner.suspended_at is not None:
        raise Forbidden(_("a suspended member gets no key"))
    terms = Terms(
        label=label,
        scopes=None if scopes is None else frozenset(scopes),
        networks=None if networks is None else tuple(sorted(set(networks))),
        expires_at=None if expires_in_s is None else clock.now() + timedelta(seconds=expires_in_s),
    )
    allowed = _allowed(session, principal, owner, terms)
    return _add(session, vault, owner, allowed, actor=principal.actor)


def add_api_key(
    session: Session, vault: Vault, *, member_id: UUID, label: str, expires_in_s: int | None
) -> NewKey:
    """Make one without a caller and without limits: for bootstrap."""
    expires_at = None if expires_in_s is None else clock.now() + timedelta(seconds=expires_in_s)
    owner = session.get_one(Member, member_id)
    return _add(session, vault, owner, Terms(label=label, expires_at=expires_at), actor=BOOTSTRAP)


def rotate_api_key(
    session: Session, principal: Principal, vault: Vault, api_key_id: UUID, *, overlap_s: int
) -> NewKey:
    """Make a key that follows another on the same terms; the former one works for `overlap_s` seconds more.

    Where the former had a lifetime, the new one has the same from now on.
    """
    former = _locked(session, principal, api_key_id, "api_keys:create")
    moment = clock.now()
    if former.revoked_at is not None or (former.expires_at is not None and former.expires_at <= moment):
        raise KeyOver(_("this key works no more"))
    owner = session.get_one(Member, former.member_id)
    held = None if former.scopes is None else frozenset(former.scopes) & permissions_of(owner.role)
    require_grantable(principal, owner.role, scopes=held)  # also of a key that is good for everything
    lifetime = None if former.expires_at is None else former.expires_at - former.created_at
    terms = Terms(
        label=former.label,
        scopes=held,
        networks=None if former.networks is None else tuple(former.networks),
        expires_at=None if lifetime is None else moment + lifetime,
        replaces=former.id,
    )
    allowed = _allowed(session, principal, owner, terms)
    made = _add(session, vault, owner, allowed, actor=principal.actor)
    until = moment + timedelta(seconds=overlap_s)
    former.expires_at = until if former.expires_at is None else min(until, former.expires_at)
    session.flush()
    return made


def revoke_api_key(session: Session, principal: Principal, api_key_id: UUID) -> None:
    """Make a key useless from the next request on. Revoking twice is revoking once."""
    row = _locked(session, principal, api_key_id, "api_keys:revoke")
    if row.revoked_at is None:
        row.revoked_at = clock.now()
        owner = session.get_one(Member, row.member_id)
        _note(session, Action.API_KEY_REVOKED, row, owner, actor=principal.actor)


def _locked(session: Session, principal: Principal, api_key_id: UUID, permission: str) -> ApiKey:
    statement = queries.api_keys(principal, permission).where(ApiKey.id == api_key_id)
    row = session.scalar(statement.with_for_update())
    if row is None:
        raise NotFound(_("there is no such API key"))
    return row


def _add(session: Session, vault: Vault, owner: Member, terms: Terms, *, actor: str) -> NewKey:
    minted = mint_api_key()
    row = ApiKey(
        member_id=owner.id,
        key_id=minted.key_id,
        secret_hmac=vault.fingerprint(API_KEY_PURPOSE, minted.text),
        label=terms.label,
        scopes=None if terms.scopes is None else sorted(terms.scopes),
        networks=None if terms.networks is None else list(terms.networks),
        expires_at=terms.expires_at,
        replaces=terms.replaces,
    )
    session.add(row)
    session.flush()
    _note(session, Action.API_KEY_CREATED, row, owner, actor=actor)
    return NewKey(row=row, text=minted.text)


def _note(session: Session, action: Action, row: ApiKey, owner: Member, *, actor: str) -> None:
    record(
        session,
        action=action,
        actor=actor,
        organisation_id=owner.organisation_id,
        subject=f"api_key:{row.id}",
        details={
            "member_id": str(row.member_id),
            "expires_at": None if row.expires_at is None else row.expires_at.isoformat(),
            "replaces": None if row.replaces is None else str(row.replaces),
        },
        committed={"label": row.label},
    )


def _allowed(session: Session, principal: Principal, owner: Member, terms: Terms) -> Terms:
    """The terms within what the caller may hand on; raises Forbidden and Invalid for what is beyond."""
    scopes = terms.scopes
    if owner.id == principal.id and scopes is None and principal.scopes is not None:
        scopes = held_by(principal)
    if scopes is not None:
        if unknown := sorted(scopes - PERMISSIONS.keys()):
            raise Invalid(_("there is no permission {permission}"), permission=unknown[0])
        if beyond := sorted(scopes - permissions_of(owner.role)):
            raise Forbidden(_("the owner's role does not hold {permission}"), permission=beyond[0])
    require_grantable(principal, owner.role, scopes=scopes)
    maker = session.get(ApiKey, principal.api_key_id) if principal.api_key_id else None
    networks, expires_at = terms.networks, terms.expires_at
    if maker is not None and maker.networks is not None:
        networks = _within(networks, tuple(maker.networks))
    if maker is not None and maker.expires_at is not None:
        expires_at = min(expires_at or maker.expires_at, maker.expires_at)
    return Terms(
        label=terms.label, scopes=scopes, networks=networks, expires_at=expires_at, replaces=terms.replaces
    )


def _within(asked: tuple[str, ...] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    """What was asked for, if it lies within the maker's own networks; those where nothing was."""
    if asked is None:
        return own
    for one in asked:
        if not any(_is_part(ip_network(one), ip_network(whole)) for whole in own):
            raise Forbidden(_("the network {network} is outside of those of your own key"), network=one)
    return asked


def _is_part(part: IPv4Network | IPv6Network, whole: IPv4Network | IPv6Network) -> bool:
    if isinstance(part, IPv4Network) and isinstance(whole, IPv4Network):
        return part.subnet_of(whole)
    return isinstance(part, IPv6Network) and isinstance(whole, IPv6Network) and part.subnet_of(whole)
