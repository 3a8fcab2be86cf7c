"""Slowing down whoever guesses: after some failures each further attempt has to wait longer.

An attempt is counted before it is judged and taken back when it was right, so that many at once gain
nothing. What is counted is a keyed hash of what was attempted: whether there is such a member changes
neither an answer nor what is written. Nobody is locked out by others' failures alone: what is counted for a
password is the pair of e-mail and caller, and the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core import clock
from app.core.crypto import Vault
from app.core.errors import DomainError
from app.core.i18n import _
from app.identity.models import Attempts

_PURPOSE = "attempts"
_FORGOTTEN = timedelta(hours=24)


class TooManyAttempts(DomainError):
    """Has to wait."""

    status, code, title = 429, "too_many_attempts", _("Too many failed attempts")
    is_suspicious = True
    meaning = _("After several failures each further attempt has to wait, every time twice as long.")
    remedy = _(
        "Wait for the time in Retry-After. If you forgot the password, ask an administrator for a reset."
    )

    def __init__(self, detail: str, /, *, wait_s: int) -> None:
        super().__init__(detail, wait_s=wait_s)
        self.retry_after_s = wait_s  # type: ignore[misc]  # of this refusal, not of its class


@dataclass(frozen=True, slots=True)
class Guarded:
    """One thing that attempts are counted for."""

    kind: str
    subject: str
    free: int
    """So many failures cost nothing."""
    longest_s: int
    """No wait is longer."""

    def key(self, vault: Vault) -> bytes:
        """Where its count is kept."""
        return vault.fingerprint(_PURPOSE, f"{self.kind}:{self.subject}")

    def wait_s(self, failures: int) -> int:
        """How long after the last of so many failures the next attempt must wait."""
        over = failures - self.free
        return 0 if over < 0 else min(self.longest_s, 2 ** min(over, 20))


def of_password(email: str, caller: str) -> tuple[Guarded, ...]:
    """What a password at a sign-in counts for: this e-mail from this caller, and this caller."""
    return (
        Guarded("password", f"{email}\n{caller}", free=5, longest_s=900),
        Guarded("caller", caller, free=50, longest_s=900),
    )


def of_second_factor(member_id: str) -> tuple[Guarded, ...]:
    """What a code counts for: its member, since who gets so far knows the password."""
    return (Guarded("second-factor", member_id, free=5, longest_s=3600),)


def of_own_password(member_id: str) -> tuple[Guarded, ...]:
    """What the present password counts for where a member changes something: that member."""
    return (Guarded("own-password", member_id, free=5, longest_s=900),)


def count(session: Session, vault: Vault, guarded: Sequence[Guarded]) -> None:
    """Count one attempt as failed until it is taken back; raises TooManyAttempts when it has to wait.

    The rows are locked in one order, so that of many attempts at once each sees the one before.
    """
    for one in sorted(guarded, key=lambda guarded: guarded.key(vault)):
        row = _locked(session, one.key(vault))
        moment, pause_s = clock.now(), one.wait_s(row.failures)  # the row may have been waited for
        ready_at = row.last_at + timedelta(seconds=pause_s)
        if pause_s and ready_at > moment:
            wait_s = int((ready_at - moment).total_seconds()) + 1
            raise TooManyAttempts(_("wait {wait_s} seconds before the next attempt"), wait_s=wait_s)
        row.failures += 1
        row.last_at = moment
    session.flush()


def take_back(session: Session, vault: Vault, guarded: Sequence[Guarded]) -> None:
    """The attempt was right: forget what was counted for the first of these, and this one for the others."""
    for one in sorted(guarded, key=lambda guarded: guarded.key(vault)):
        row = session.get(Attempts, one.key(vault), with_for_update=True, populate_existing=True)
        if row is not None:
            row.failures = 0 if one == guarded[0] else max(0, row.failures - 1)
    session.flush()


def forget_old(session: Session) -> None:
    """Delete what nobody attempted for a day, some rows at a time."""
    old = sa.select(Attempts.key_hmac).where(Attempts.last_at < clock.now() - _FORGOTTEN).limit(100)
    session.execute(sa.delete(Attempts).where(Attempts.key_hmac.in_(old.with_for_update(skip_locked=True))))


def _locked(session: Session, key: bytes) -> Attempts:
    fresh = insert(Attempts).values(key_hmac=key, failures=0, last_at=clock.now())
    session.execute(fresh.on_conflict_do_nothing())
    row = session.get_one(Attempts, key, with_for_update=True, populate_existing=True)
    if row.last_at < clock.now() - _FORGOTTEN:
        row.failures = 0
    return row
