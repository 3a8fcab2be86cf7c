"""From an Authorization header to a principal.

An access token is checked without a query; who was suspended since it was issued is known from a set that
the hub keeps fresh. An API key is looked up, and an unknown one costs the same work as a known one.
"""

from __future__ import annotations

import hmac
import threading
import time
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core import clock
from app.core.crypto import Vault
from app.core.db import Database
from app.core.errors import Forbidden, Unauthorized
from app.core.i18n import _
from app.core.settings import Settings
from app.core.tokens import ACCESS_TOKEN, Expected, TokenRefused, read_header, verify_token
from app.identity.credentials import API_KEY_PREFIX, read_key_id
from app.identity.keys import KeyRing
from app.identity.models import ApiKey, Client, ClientState, Member
from app.identity.possession import BEARER, DPOP, Possession, Presented
from app.identity.roles import Principal, Role

CHANNEL = "dpfl_principals"
"""Announces suspensions and reinstatements to every process."""
API_KEY_PURPOSE = "api-key"
_MAX_LIFETIME_S = 3600
_MAX_AGE_S = 30.0
_TOUCH_EVERY = timedelta(minutes=1)


class Suspended(Forbidden):
    """Known, and switched off."""

    code, title = "suspended", _("Suspended")
    meaning = _("The training client or member was suspended; its credentials do not work meanwhile.")
    remedy = _("Ask an administrator of the federation why, and to be reinstated.")


class Suspensions:
    """The principals that may not act, in memory; read again after each announcement, and by age."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._announced = 0
        self._held: tuple[frozenset[UUID], int, float] = (frozenset(), -1, float("-inf"))
        """The ids, the announcements that they follow, and when they were asked for: changed as one."""

    def announce(self, _payload: str = "") -> None:
        """Forget what is held; the next question reads the database (called by the hub)."""
        self._announced += 1

    def __contains__(self, principal_id: UUID) -> bool:
        if self._is_stale():
            self._read()
        return principal_id in self._held[0]

    def _is_stale(self) -> bool:
        _ids, announced, asked_at = self._held
        return announced != self._announced or time.monotonic() - asked_at > _MAX_AGE_S

    def _read(self) -> None:
        with self._lock:
            if not self._is_stale():
                return  # another thread has just done it
            # Taken before reading: an announcement that arrives meanwhile makes this reading stale.
            announced, asked_at = self._announced, time.monotonic()
            with self._database.run_tx("load_suspensions") as session:
                self._held = (frozenset(_suspended_ids(session)), announced, asked_at)


def _suspended_ids(session: Session) -> list[UUID]:
    clients = sa.select(Client.id).where(Client.state == ClientState.SUSPENDED)
    members = sa.select(Member.id).where(Member.suspended_at.is_not(None))
    return list(session.scalars(sa.union_all(clients, members)))


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
            max_lifetime_s=_MAX_LIFETIME_S,
            leeway_s=settings.clock_leeway_s,
        )

    def principal(self, authorization: str | None, presented: Presented) -> Principal:
        """Return who calls. Raises Unauthorized, or Suspended (403) for one who is known and switched off."""
        scheme, _blank, credential = (authorization or "").partition(" ")
        scheme, credential = scheme.lower(), credential.strip()
        if scheme not in (BEARER, DPOP) or not credential:
            raise Unauthorized(_("send an access token or an API key as `Authorization: Bearer ...`"))
        if credential.startswith(API_KEY_PREFIX) and scheme == BEARER:
            return self._by_api_key(credential)
        return self._by_token(credential, scheme, presented)

    def _by_token(self, token: str, scheme: str, presented: Presented) -> Principal:
        try:
            kid = read_header(token).get("kid")
            key = self._keys.public_key(kid) if isinstance(kid, str) else None
            if key is None:
                raise Unauthorized(_("the access token was not issued here"))
            claims = verify_token(token, key, self._expected)
            found = Principal(
                id=UUID(claims["sub"]), organisation_id=UUID(claims["org"]), role=Role(claims["role"])
            )
        except TokenRefused as error:
            raise Unauthorized(
                _("the access token does not hold: {reason}"), reason=str(error.reason)
            ) from error
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise Unauthorized(_("the access token does not hold: {reason}"), reason="claims") from error
        if found.id in self.suspensions:
            raise Suspended(_("this account is suspended"))
        self.possession.check(claims, found.role, scheme=scheme, token=token, presented=presented)
        return found

    def _by_api_key(self, text: str) -> Principal:
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
            _touch(session, key)
            return Principal(id=member.id, organisation_id=member.organisation_id, role=member.role)


def _holds(key: ApiKey) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > clock.now())


def _touch(session: Session, key: ApiKey) -> None:
    """Note the use, at most once a minute and never waiting for another request that does the same."""
    moment = clock.now()
    if key.last_used_at is not None and moment - key.last_used_at < _TOUCH_EVERY:
        return
    free = sa.select(ApiKey.id).where(ApiKey.id == key.id).with_for_update(skip_locked=True).scalar_subquery()
    session.execute(sa.update(ApiKey).where(ApiKey.id == free).values(last_used_at=moment))
