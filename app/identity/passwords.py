"""Passwords: argon2id, computed by a few threads of their own.

A hash takes 19 MiB and some 50 ms of a core on purpose, so it is computed apart from what serves requests.
"""

from __future__ import annotations

import functools
import os
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.core.errors import Invalid
from app.core.few_threads import FewThreads
from app.core.i18n import _

HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, hash_len=32, salt_len=16)
"""OWASP's first choice of parameters (argon2id, 19 MiB, 2 passes, 1 lane)."""
THREADS = max(1, (os.cpu_count() or 2) // 2)
_MOST_WAITING = 64
MIN_CHARS, MAX_CHARS = 12, 128
_MIN_DIFFERENT = 5


class PasswordTooWeak(Invalid):
    """A password that is guessed early."""

    code, title = "password_too_weak", _("Password too weak")
    meaning = _("The password repeats few characters, or contains the member's own name or address.")
    remedy = _("Choose at least 12 characters that others would not try: several words, or a manager's draw.")


def hashing_threads() -> FewThreads:
    """The threads of one process that hash passwords."""
    threads = FewThreads("argon2", threads=THREADS, most_waiting=_MOST_WAITING)
    threads.start(nobodys_hash)  # now, and not at the first unknown address
    return threads


@functools.cache
def nobodys_hash() -> str:
    """The hash of a password that nobody knows, by the same parameters: checked where there is none."""
    return HASHER.hash(secrets.token_urlsafe(32))


def hash_password(password: str) -> str:
    """Hash a new password. Slow: run it on `hashing_threads`."""
    return HASHER.hash(password)


def matches(password: str, password_hash: str | None) -> bool:
    """Compare, at the same cost whether there is a hash or none. Slow: run it on `hashing_threads`."""
    try:
        is_right = HASHER.verify(password_hash or nobodys_hash(), password)
    except (VerificationError, InvalidHashError):
        return False
    return is_right and password_hash is not None


def require_strong(password: str, *, known: tuple[str | None, ...]) -> None:
    """Refuse a password of few characters, or around something that is known of its owner."""
    lowered = password.lower()
    words = [word.lower() for word in known if word and len(word) >= 4]
    if len(set(password)) < _MIN_DIFFERENT or any(word in lowered for word in words):
        raise PasswordTooWeak(_("this password is guessed early"))
