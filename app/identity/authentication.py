"""From an Authorization header to a principal.

An access token is checked without a query; whose tokens have ended since they were issued is known from
sets that the hub keeps fresh. An API key is looked up, and an unknown one costs the same work as a known one.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core import clock
from app.core.crypto import Vault
from app.core.db import Database
from app.core.errors import Forbidden, Unauthorized
from app.core.i18n import _
from app.core.networks import is_within
from app.core.settings import Settings
from app.core.tokens import ACCESS_TOKEN, Expected, TokenRefused, read_header, verify_token
from app.identity.credentials import API_KEY_PREFIX, read_key_id
from app.identity.keys import MAX_LIFETIME_S, KeyRing
from app.identity.models import ApiKey, Client, ClientState, Member, MemberSession
from app.identity.possession import BEARER, DPOP, Possession, Presented
from app.identity.roles import Principal, Role

API_KEY_PURPOSE = "api-key"
_MARGIN = timedelta(minutes=10)
"""Leeway of clocks, and more: endings are remembered for as long as any token of before may last."""
_MAX_AGE_S = 30.0
_TOUCH_EVERY = timedelta(minutes=1)


class Suspended(Forbidden):
    """Known, and switched off."""

    code, title = "suspended", _("Suspended")
    meaning = _("The training client or member was suspended; its credentials do not work meanwhile.")
    remedy = _("Ask an administrator of the federation why, and to be reinstated.")


class AddressNotAllowed(Forbidden):
    """The key is right, and comes from elsewhere."""

    code, title = "address_not_allowed", _("Address not allowed")
    is_suspicious = True
    meaning = _("The API key is taken from certain networks only, and the request came from another one.")
    remedy = _(
        "Call from one of the key's networks, or have a key made for yours. If it was not you: revoke it."
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """What one process knows of ended tokens; changed as one."""

    suspended: frozenset[UUID] = frozenset()
    """Principals that may not act at all."""
    epochs: Mapping[UUID, int] = field(default_factory=dict)
    """Principals whose tokens of an earlier epoch have ended, where one of them might still last."""
    sessions: frozenset[UUID] = frozenset()
    """Ended sign-ins of which an access token might still last."""
    announced: int = -1
    """The announcements that this follows."""
    asked_at: float = float("-inf")


class Suspensions:
    """Whose tokens have ended, in memory; read again after each announcement, and by age."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._announced = 0
        self._held = _Held()

    def announce(self, _payload: str = "") -> None:
        """Forget what is held; the next question reads the database (called by the hub)."""
        self._announced += 1

    def __contains__(self, principal_id: UUID) -> bool:
        return principal_id in self._fresh().suspended

    def has_ended(self, principal_id: UUID, *, epoch: int, session_id: UUID | None) -> bool:
        """Whether a token of this epoch and sign-in was ended before its time."""
        held = self._fresh()
        return epoch < held.epochs.get(principal_id, 0) or session_id in held.sessions

    def _fresh(self) -> _Held:
        if self._is_stale():
            self._read()
        return self._held

    def _is_stale(self) -> bool:
        held = self._held
        return held.announced != self._announced or time.monotonic() - held.asked_at > _MAX_AGE_S

    def _read(self) -> None:
        with self._lock:
            if not self._is_stale():
                return  # another thread has just done it
            # Taken before reading: an announcement that arrives meanwhile makes this reading stale.
            announced, asked_at = self._announced, time.monotonic()
            with self._database.run_tx("load_suspensions") as session:
                self._held = _Held(
                    suspended=frozenset(_suspended_ids(session)),
                    epochs=_recent_epochs(session),
                    sessions=frozenset(_ended_sessions(session)),
                    announced=announced,
                    asked_at=asked_at,
                )


def _suspended_ids(session: Session) -> list[UUID]:
    clients = sa.select(Client.id).where(Client.state != ClientState.ACTIVE)
    members = sa.select(Member.id).where(Member.suspended_at.is_not(None))
    return list(session.scalars(sa.union_all(clients, members)))


def _recent_epochs(session: Session) -> dict[UUID, int]:
    since = clock.now() - timedelta(seconds=MAX_LIFETIME_S) - _MARGIN
    clients = sa.select(Client.id, Client.token_epoch).where(Client.token_epoch_at > since)
    members = sa.select(Member.id, Member.token_epoch).where(Member.token_epoch_at > since)
    return {row.id: row.token_epoch for row in session.execute(sa.union_all(clients, members))}


def _ended_sessions(session: Session) -> list[UUID]:
    since = clock.now() - timedelta(seconds=MAX_LIFETIME_S) - _MARGIN
    return list(session.scalars(sa.select(MemberSession.id).where(MemberSession.ended_at > since)))


class Authenticator:
    """Turns the Authorization header of a request into a Principal."""

    def __init__(self, *, settings: Settings, database: Database, vault: Vault, keys: KeyRing) -> None:
        self._database = database
        self._vault = vault
        self._keys = keys
        self.suspensions = Suspensions(database)
        self.possession = Possession(settings, database)
        self._expected = Expected(
            typ=ACCESS_TOKEN,
            issuer=settings.public_url,
            audience=settings.public_url,
            max_lifetime_s=MAX_LIFETIME_S,
            leeway_s=settings.clock_leeway_s,
        )

    def principal(self, authorization: str | None, presented: Presented) -> Principal:
        """Return who calls.

        Raises Unauthorized, Suspended (403) for one who is known and switched off, and AddressNotAllowed.
        """
        scheme, _blank, credential = (authorization or "").partition(" ")
        scheme, credential = scheme.lower(), credential.strip()
        if scheme not in (BEARER, DPOP) or not credential:
            raise Unauthorized(_("send an access token or an API key as `Authorization: Bearer ...`"))
        if credential.startswith(API_KEY_PREFIX) and scheme == BEARER:
            return self._by_api_key(credential, presented.address)
        return self._by_token(credential, scheme, presented)

    def _by_token(self, token: str, scheme: str, presented: Presented) -> Principal:
        try:
            kid = read_header(token).get("kid")
            key = self._keys.token_key(kid) if isinstance(kid, str) else None
            if key is None:
                raise Unauthorized(_("the access token was not issued here"))
            claims = verify_token(token, key, self._expected)
            found, epoch = _claimed(claims)
        except TokenRefused as error:
            raise Unauthorized(
                _("the access token does not hold: {reason}"), reason=str(error.reason)
            ) from error
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise Unauthorized(_("the access token does not hold: {reason}"), reason="claims") from error
        if found.id in self.suspensions:
            raise Suspended(_("this account is suspended"))
        if self.suspensions.has_ended(found.id, epoch=epoch, session_id=found.session_id):
            raise Unauthorized(_("the access token does not hold: {reason}"), reason="ended")
        self.possession.check(claims, found.role, scheme=scheme, token=token, presented=presented)
        return found

    def _by_api_key(self, text: str, address: str | None) -> Principal:
        key_id = read_key_id(text)
        if key_id is None:
            raise Unauthorized(_("this is not an API key: its form or its checksum is wrong"))
        presented = self._vault.fingerprint(API_KEY_PURPOSE, text)
        with self._database.run_tx("authenticate") as session:
            row = session.execute(
                sa.select(ApiKey, Member)
                .join(Member, Member.id == ApiKey.member_id)
                .where(ApiKey.key_id == key_id)
            ).one_or_none()
            held = bytes(32) if row is None else row[0].secret_hmac
            if not hmac.compare_digest(presented, held) or row is None or not _holds(row[0]):
                raise Unauthorized(_("the API key is unknown, expired or revoked"))
            key, member = row
            if member.suspended_at is not None:
                raise Suspended(_("this account is suspended"))
            if key.networks is not None and not is_within(address, key.networks):
                raise AddressNotAllowed(_("this key is not taken from this address"))
            _touch(session, key, address)
            return Principal(
                id=member.id,
                organisation_id=member.organisation_id,
                role=member.role,
                scopes=None if key.scopes is None else frozenset(key.scopes),
                api_key_id=key.id,
            )


def _claimed(claims: Mapping[str, Any]) -> tuple[Principal, int]:
    """The principal of a token that holds, and its epoch; raises what its reader turns into a refusal."""
    scope, session_id = claims.get("scope"), claims.get("sid")
    found = Principal(
        id=UUID(claims["sub"]),
        organisation_id=UUID(claims["org"]),
        role=Role(claims["role"]),
        scopes=None if scope is None else frozenset(scope.split()),
        session_id=None if session_id is None else UUID(session_id),
    )
    return found, int(claims.get("epoch", 0))


def _holds(key: ApiKey) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > clock.now())


def _touch(session: Session, key: ApiKey, address: str | None) -> None:
    """Note the use, at most once a minute and never waiting for another request that does the same."""
    moment, seen = clock.now(), None if address is None else address[:45]
    is_fresh = key.last_used_at is not None and moment - key.last_used_at < _TOUCH_EVERY
    if is_fresh and key.last_used_address == seen:
        return
    free = sa.select(ApiKey.id).where(ApiKey.id == key.id).with_for_update(skip_locked=True).scalar_subquery()
    change = sa.update(ApiKey).where(ApiKey.id == free)
    session.execute(change.values(last_used_at=moment, last_used_address=seen))
