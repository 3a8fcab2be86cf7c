"""Bodies of members, sign-ins, sessions and one's own account. Secrets come in and never go out again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from app.core.strict import Name, StrictModel
from app.identity.models import MemberKind, SessionEnd
from app.identity.passwords import MAX_CHARS, MIN_CHARS
from app.identity.roles import Role
from app.identity.schemas import View, example

_DAY_S = 86_400
_ID = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"
_PASSWORD = "twelve strong horses"  # noqa: S105  an example  # nosec B105
_NEW_PASSWORD = "nine quiet lighthouses"  # noqa: S105  an example  # nosec B105
_PASSWORD_TOKEN = "dpfl_password_0f5Zq0m3nY8wHs2kQ7xLr4vT9bUeA1cD6gJiKpMaBCDxY3Z1aw"  # noqa: S105  # nosec B105
_REFRESH_TOKEN = "dpfl_refresh_0f5Zq0m3nY8wHs2kQ7xLr4vT9bUeA1cD6gJiKpMaBCDxY3Z1aw"  # noqa: S105  # nosec B105

MemberRole = Literal["admin", "coordinator", "privacy_officer", "auditor", "data_steward", "viewer"]
Email = Annotated[
    str,
    StringConstraints(
        strict=True, max_length=254, pattern=r"^[!-?A-~]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,8}$"
    ),
]
Password = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_CHARS)]
NewPassword = Annotated[str, StringConstraints(strict=True, min_length=MIN_CHARS, max_length=MAX_CHARS)]
Code = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9]{6}$")]
RecoveryCodeText = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z2-7 -]{16,24}$")]
TokenText = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")
]


class MemberIn(StrictModel):
    """A person or an automation to add."""

    model_config = example(organisation_id=_ID, name="Ada", role="coordinator", email="ada@riverside.example")

    organisation_id: UUID
    name: Name
    role: MemberRole
    kind: Literal["person", "service"] = "person"
    """A `service` account has API keys only: no e-mail address, no password."""
    email: Email | None = None
    """With which a person signs in; without one, by API key only."""


class MemberView(StrictModel):
    """A member of an organisation."""

    id: UUID
    organisation_id: UUID
    name: str
    kind: MemberKind
    role: Role
    email: str | None
    """Null where there is none, or where it is not yours to see."""
    has_password: bool
    has_second_factor: bool
    suspended_at: datetime | None
    created_at: datetime


class RoleIn(StrictModel):
    """A role to give."""

    model_config = example(role="auditor")

    role: MemberRole


class MoveIn(StrictModel):
    """The organisation to move to."""

    model_config = example(organisation_id=_ID)

    organisation_id: UUID


class SignInIn(StrictModel):
    """Who somebody says they are, and what shows it."""

    model_config = example(email="ada@riverside.example", password=_PASSWORD, code="123456")

    email: Email
    password: Password
    code: Code | None = None
    """Of the second factor, where the member has one."""
    recovery_code: RecoveryCodeText | None = None
    """Instead of `code`, when the device is lost; works once."""


class RefreshIn(StrictModel):
    """A refresh token to exchange."""

    model_config = example(refresh_token=_REFRESH_TOKEN)

    refresh_token: TokenText


class SignedInView(StrictModel):
    """Fresh tokens of a session."""

    session_id: UUID
    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  RFC 6750's word
    expires_in: int
    """Seconds."""
    refresh_token: str
    """Works once; using it gives the next. One that comes twice ends the session."""
    session_expires_at: datetime
    """Until then the session can be refreshed."""
    scopes: list[str] | None
    """The only permissions that this sign-in is good for; null: all of the role's."""


class SessionView(View):
    """A sign-in, without its tokens."""

    id: UUID
    member_id: UUID
    method: str
    """`password`, or the name of the issuer."""
    second_factor: bool
    address: str | None
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    ended_why: SessionEnd | None


class AccountView(StrictModel):
    """Who is asking, and with what rights."""

    id: UUID
    organisation_id: UUID
    name: str
    kind: MemberKind
    role: Role
    email: str | None
    has_password: bool
    has_second_factor: bool
    needs_second_factor: bool
    """Whether this sign-in is good for nothing but getting one."""
    permissions: list[str]
    """What these credentials are good for."""


class PasswordIn(StrictModel):
    """A change of one's own password."""

    model_config = example(password=_PASSWORD, new_password=_NEW_PASSWORD)

    password: Password
    new_password: NewPassword


class SecondFactorIn(StrictModel):
    """A request for a fresh second factor."""

    model_config = example(password=_PASSWORD)

    password: Password
    code: Code | None = None
    """Of the present second factor, where there is one."""


class SecondFactorOffered(StrictModel):
    """A secret for an authenticator; it counts once a code of it is confirmed."""

    otpauth_uri: str


class CodeIn(StrictModel):
    """A code of the offered second factor."""

    model_config = example(code="123456")

    code: Code


class RecoveryCodes(StrictModel):
    """What stands in for the second factor, each once. Shown now and never again."""

    recovery_codes: list[str]


class PasswordTokenIn(StrictModel):
    """A one-use token to issue for a member."""

    model_config = example(purpose="invitation", expires_in_s=3 * _DAY_S)

    purpose: Literal["invitation", "reset"]
    drops_second_factor: bool = Field(default=False, strict=True)
    """Whether using it also takes the second factor away, for a member who lost the device."""
    expires_in_s: Annotated[int, Field(strict=True, ge=60, le=7 * _DAY_S)] = _DAY_S


class PasswordTokenOnce(StrictModel):
    """A new token, for the only time."""

    member_id: UUID
    purpose: str
    expires_at: datetime
    token: str


class PasswordFromTokenIn(StrictModel):
    """A password to set by a one-use token."""

    model_config = example(token=_PASSWORD_TOKEN, password=_PASSWORD)

    token: TokenText
    password: NewPassword


class IssuerView(StrictModel):
    """An issuer through which members may sign in."""

    name: str
    issuer: str


class IssuersView(StrictModel):
    """All of them."""

    items: list[IssuerView]


class OidcTokenForm(StrictModel):
    """A code to exchange (RFC 6749, RFC 7636), form-encoded."""

    model_config = example(
        grant_type="authorization_code",
        code="dpfl_code_0f5Zq0m3nY8wHs2kQ7xLr4vT9bUeA1cD6gJiKpMaBCDxY3Z1aw",
        redirect_uri="https://dpfl.example/docs/oauth2-redirect.html",
        code_verifier="dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    )

    grant_type: Literal["authorization_code"]
    code: TokenText
    redirect_uri: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    code_verifier: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~-]{43,128}$")]
    client_id: Annotated[str, StringConstraints(max_length=200)] | None = None
    """Allowed for OAuth libraries that send it; the verifier decides."""
    client_secret: Annotated[str, StringConstraints(max_length=200)] | None = None
    """The same; there is none."""
