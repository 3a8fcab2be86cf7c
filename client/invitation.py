"""The invitation: one file with all that another machine needs to become a client. A secret until it is used.

Its bytes are fixed by what it says, and each member has its own sum, so that damage is found and its place
named. The sums are no signature: whoever can exchange the file can invite to another server. It therefore
travels by a way that its reader trusts.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.x509 import load_pem_x509_certificates
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from client.durable import write_whole
from client.errors import ClientError
from client.i18n import _
from client.trust import MOST_AUTHORITIES, MOST_PINS, PIN_PATTERN

MOST_BYTES = 64 * 1024
_FORMAT: Literal["dpfl-invitation"] = "dpfl-invitation"
_SUMS = "sums"
_SUM_CHARS = 32
Words = Annotated[str, Field(min_length=1, max_length=200)]


class Invitation(BaseModel):
    """What an operator tells the machine that is to become a client."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["dpfl-invitation"] = _FORMAT
    version: Literal[1] = 1
    server: Annotated[str, Field(min_length=8, max_length=300, pattern=r"^https?://[!-~]+$")]
    ca: Annotated[str, Field(max_length=16 * 1024)] | None
    """Certificates (PEM) of the server's own authority; None where a public one certifies it."""
    pins: Annotated[list[Annotated[str, Field(pattern=PIN_PATTERN)]], Field(max_length=MOST_PINS)]
    """The server's key, and the one that it will have next."""
    token: Annotated[str, Field(min_length=20, max_length=200, pattern=r"^[!-~]+$")]
    expires_at: Annotated[str, Field(max_length=40)]
    organisation: Words
    region: Words

    @field_validator("ca")
    @classmethod
    def _holds_certificates(cls, value: str | None) -> str | None:
        if value is not None:
            found = load_pem_x509_certificates(value.encode())
            if not 1 <= len(found) <= MOST_AUTHORITIES or "PRIVATE" in value:
                raise ValueError("certificates alone, and few")
        return value

    @field_validator("expires_at")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        if datetime.fromisoformat(value).tzinfo is None:
            raise ValueError("a time with its zone")
        return value

    @field_validator("organisation", "region")
    @classmethod
    def _can_be_read(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("letters that can be seen")
        return value

    @model_validator(mode="after")
    def _pins_its_server(self) -> Invitation:
        if self.server.startswith("https://") and not self.pins:
            raise ValueError("a server with TLS has a pin")
        return self

    @property
    def expires(self) -> datetime:
        """When the token stops to work."""
        return datetime.fromisoformat(self.expires_at)

    def require_fresh(self, now: datetime) -> None:
        """Refuse an invitation that is over by this machine's clock, before anything is asked."""
        if self.expires <= now:
            raise ClientError(
                "invitation_expired",
                _("the invitation expired at {time}; this machine's clock says {now}: ask for a new one"),
                time=self.expires.astimezone(UTC).isoformat(timespec="seconds"),
                now=now.astimezone(UTC).isoformat(timespec="seconds"),
            )

    def write(self, path: Path) -> None:
        """Write the file; only this account may read it."""
        write_whole(path, _rendered(self.model_dump(mode="json")), mode=0o600)


def read_invitation(path: Path) -> Invitation:
    """Read the file strictly; what is not as it was written is refused, with its place."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ClientError(
            "cannot_read", _("cannot read {path}: {reason}"), path=str(path), reason=error.strerror or "error"
        ) from error
    return parse_invitation(raw, path=path)


def parse_invitation(raw: bytes, *, path: Path) -> Invitation:
    """Read the bytes of the file at `path`."""
    if len(raw) > MOST_BYTES:
        raise _refused(path, "size")
    values = _values(path, raw)
    sums = values.pop(_SUMS, None)
    if not isinstance(sums, dict) or not sums.keys() <= Invitation.model_fields.keys():
        raise _refused(path, _SUMS)
    for name in [*Invitation.model_fields, *sorted(values)]:
        if name not in Invitation.model_fields or sums.get(name) != _sum(values.get(name)):
            raise _refused(path, name)
    try:
        invitation = Invitation.model_validate(values)
    except ValidationError as error:
        raise _refused(path, ".".join(str(part) for part in error.errors()[0]["loc"]) or "pins") from error
    wanted = _rendered(values)
    if raw != wanted:  # other blanks, a name that appears twice
        lines = zip(raw.split(b"\n"), wanted.split(b"\n"), strict=False)
        number = next((at for at, (one, other) in enumerate(lines, start=1) if one != other), 0)
        raise _refused(path, f"line {number or 'last'}")
    return invitation


def _values(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        values = json.loads(raw.decode("ascii"))
    except json.JSONDecodeError as error:
        raise _refused(path, f"line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        place = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else "content"
        raise _refused(path, place) from error
    if not isinstance(values, dict):
        raise _refused(path, "line 1, column 1")
    return values


def _rendered(values: dict[str, Any]) -> bytes:
    ordered = {name: values[name] for name in Invitation.model_fields}
    sums = {name: _sum(value) for name, value in ordered.items()}
    return json.dumps(ordered | {_SUMS: sums}, indent=2).encode() + b"\n"


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_SUM_CHARS]


def _refused(path: Path, place: str) -> ClientError:
    return ClientError(
        "invitation_damaged",
        _("{path} is no whole invitation: {place} is not as it was written; ask for the file again"),
        path=str(path),
        place=place[:100],
    )
