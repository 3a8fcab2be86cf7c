"""Bearer secrets: how API keys and one-use tokens look, and how they are recognised.

All are 256 random bits, so a keyed hash is enough (a slow one would only be a way to keep us busy).
A checksum refuses typing errors and scanners' guesses before the database is asked.
"""

from __future__ import annotations

import re
import secrets
import zlib
from dataclasses import dataclass

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS = 43  # 62**43 > 2**256
_CHECK_CHARS = 6
_API_KEY = re.compile(r"dpfl_live_([0-9A-Za-z]{8})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")
_TOKEN = re.compile(r"dpfl_[a-z]{3,10}_[0-9A-Za-z]{43}[0-9A-Za-z]{6}")

API_KEY_PREFIX = "dpfl_live_"


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new API key: `text` is shown once, `key_id` finds its row."""

    key_id: str
    text: str


def mint_api_key() -> MintedKey:
    """Make a key `dpfl_live_<id>_<secret><checksum>`."""
    key_id = _random(8)
    body = f"{API_KEY_PREFIX}{key_id}_{_random(_SECRET_CHARS)}"
    return MintedKey(key_id=key_id, text=body + _checksum(body))


def read_key_id(text: str) -> str | None:
    """The public id inside an API key, or None when the text cannot be one."""
    match = _API_KEY.fullmatch(text)
    if match is None or _checksum(text[:-_CHECK_CHARS]) != match[3]:
        return None
    return match[1]


def mint_token(kind: str) -> str:
    """Make a token `dpfl_<kind>_<secret><checksum>`: kind is `enrol`, `password`, `refresh` or `code`."""
    body = f"dpfl_{kind}_{_random(_SECRET_CHARS)}"
    return body + _checksum(body)


def is_token(kind: str, text: str) -> bool:
    """Say whether the text could be a token of this kind."""
    is_formed = text.startswith(f"dpfl_{kind}_") and _TOKEN.fullmatch(text) is not None
    return is_formed and _checksum(text[:-_CHECK_CHARS]) == text[-_CHECK_CHARS:]


def mint_enrolment_token() -> str:
    """Make a token `dpfl_enrol_<secret><checksum>`."""
    return mint_token("enrol")


def is_enrolment_token(text: str) -> bool:
    """Say whether the text could be an enrolment token."""
    return is_token("enrol", text)


def _random(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _index in range(count))


def _checksum(text: str) -> str:
    value, digits = zlib.crc32(text.encode()), []
    for _index in range(_CHECK_CHARS):
        value, digit = divmod(value, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
