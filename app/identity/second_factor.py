"""The second factor: time-based one-time codes (RFC 6238), and recovery codes for when the device is lost.

A code is taken once: the time step of the last one is kept, and no earlier or equal one holds afterwards.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import urllib.parse
from collections.abc import Sequence

import sqlalchemy as sa
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy.orm import Session

from app.core import clock
from app.core.crypto import Vault
from app.identity.models import Member, RecoveryCode

_PURPOSE = "totp-secret"
_CODE_PURPOSE = "recovery-code"
STEP_S, DIGITS = 30, 6
_WINDOW = (0, -1, 1)
"""Steps that are tried: this one, and one to each side for clocks that are off."""
_RECOVERY_CODES, _RECOVERY_BYTES = 10, 10
_ISSUER = "DP-Federated LoRA Lab"


def offer(vault: Vault, member: Member, *, account: str) -> str:
    """Give a member a fresh secret, which counts once a code of it is shown. Returns its otpauth URI."""
    secret = os.urandom(20)
    member.totp_offered_sealed = vault.seal(_PURPOSE, secret)
    label = urllib.parse.quote(f"{_ISSUER}:{account}")
    query = urllib.parse.urlencode({"secret": base64.b32encode(secret).decode(), "issuer": _ISSUER})
    return f"otpauth://totp/{label}?{query}"


def confirm(session: Session, vault: Vault, member: Member, code: str) -> list[str] | None:
    """Make the offered secret the member's, if the code is one of it.

    Returns fresh recovery codes, which replace all earlier ones and exist nowhere else; None when the code
    does not hold, or nothing was offered.
    """
    offered = member.totp_offered_sealed
    step = None if offered is None else _step_of(vault.unseal(_PURPOSE, offered), code, after=None)
    if step is None:
        return None
    member.totp_sealed, member.totp_offered_sealed, member.totp_last_step = offered, None, step
    return _new_recovery_codes(session, vault, member)


def holds(vault: Vault, member: Member, code: str) -> bool:
    """Whether a code is right and fresh; if so it is used up. The member's row must be locked."""
    if member.totp_sealed is None:
        return False
    step = _step_of(vault.unseal(_PURPOSE, member.totp_sealed), code, after=member.totp_last_step)
    if step is None:
        return False
    member.totp_last_step = step
    return True


def use_recovery_code(session: Session, vault: Vault, member: Member, code: str) -> bool:
    """Whether a recovery code is right and unused; if so it is used up."""
    used = session.scalar(
        sa.update(RecoveryCode)
        .where(
            RecoveryCode.member_id == member.id,
            RecoveryCode.code_hmac == vault.fingerprint(_CODE_PURPOSE, _plain(code)),
            RecoveryCode.used_at.is_(None),
        )
        .values(used_at=clock.now())
        .returning(RecoveryCode.member_id)
    )
    return used is not None


def drop(session: Session, member: Member) -> None:
    """Take a member's second factor away, recovery codes included."""
    member.totp_sealed = member.totp_offered_sealed = member.totp_last_step = None
    session.execute(sa.delete(RecoveryCode).where(RecoveryCode.member_id == member.id))


def _new_recovery_codes(session: Session, vault: Vault, member: Member) -> list[str]:
    session.execute(sa.delete(RecoveryCode).where(RecoveryCode.member_id == member.id))
    codes = [
        base64.b32encode(secrets.token_bytes(_RECOVERY_BYTES)).decode() for _index in range(_RECOVERY_CODES)
    ]
    session.add_all(
        RecoveryCode(member_id=member.id, code_hmac=vault.fingerprint(_CODE_PURPOSE, code)) for code in codes
    )
    session.flush()
    return [_grouped(code) for code in codes]


def _step_of(secret: bytes, code: str, *, after: int | None) -> int | None:
    """The time step whose code this is, among those near now and after the last that was used."""
    now = int(clock.now().timestamp()) // STEP_S
    algorithm = SHA1()  # noqa: S303  RFC 6238's, and what authenticators expect  # nosec B303
    totp = TOTP(secret, DIGITS, algorithm, STEP_S, enforce_key_length=False)
    found = _equal_steps([now + shift for shift in _WINDOW], totp, code)
    return next((step for step in found if after is None or step > after), None)


def _equal_steps(steps: Sequence[int], totp: TOTP, code: str) -> list[int]:
    """All are compared, whichever is right."""
    return [step for step in steps if hmac.compare_digest(totp.generate(step * STEP_S), code.encode())]


def _plain(code: str) -> str:
    return code.replace("-", "").replace(" ", "").upper()


def _grouped(code: str) -> str:
    return "-".join(code[start : start + 4] for start in range(0, len(code), 4))
