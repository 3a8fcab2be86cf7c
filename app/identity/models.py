"""Tables of who is who. Secrets are stored as keyed hashes, private keys sealed."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, enum_type
from app.core.ids import new_id
from app.identity.roles import Role


class ClientState(StrEnum):
    """Whether a training client may act."""

    PENDING = "pending"  # enrolled by an invitation that asks for approval; gets no token yet
    ACTIVE = "active"  # may get tokens and take part
    SUSPENDED = "suspended"  # gets no token; its running tokens are refused
    REJECTED = "rejected"  # was not approved, for good
    REVOKED = "revoked"  # its key is not trusted any more, for good


class Approval(StrEnum):
    """Who lets a training client in that took up an invitation."""

    AUTOMATIC = "automatic"  # the invitation itself
    MANUAL = "manual"  # an administrator or coordinator, after looking at the client


class MemberKind(StrEnum):
    """What stands behind a member."""

    PERSON = "person"  # may sign in, by password or through an issuer
    SERVICE = "service"  # an automation: API keys only, never a password


class SessionEnd(StrEnum):
    """Why a session ended before its time."""

    LOGOUT = "logout"  # its member ended it
    EVERYWHERE = "everywhere"  # its member ended all, or an administrator did
    CHANGED = "changed"  # password, role, organisation or standing of the member changed
    REUSE = "reuse"  # a refresh token came twice: one of the two was stolen


class TokenPurpose(StrEnum):
    """What a one-use token lets its bearer do: set a password, for this reason."""

    INVITATION = "invitation"  # the member has none yet
    RESET = "reset"  # the member has lost it


class KeyState(StrEnum):
    """The life of a token-signing key."""

    NEXT = "next"  # published in the JWKS, signs nothing yet
    CURRENT = "current"  # signs
    RETIRED = "retired"  # verifies certificates, and tokens until the last of them has expired
    REVOKED = "revoked"  # leaked: verifies nothing, and is not published


class Organisation(Base):
    """A party of the federation: a hospital, a bank, the operator."""

    __tablename__ = "organisations"
    __table_args__ = (sa.CheckConstraint("epsilon_ceiling > 0", name="epsilon_ceiling"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(sa.String(200), unique=True)
    region: Mapped[str] = mapped_column(sa.String(64))
    epsilon_ceiling: Mapped[float | None]
    """No account of the organisation is granted more than this; None: only who grants decides."""
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Member(Base):
    """A person or an automation of an organisation; holds API keys."""

    __tablename__ = "members"
    __table_args__ = (
        sa.CheckConstraint("kind = 'person' OR password_hash IS NULL", name="service_without_password"),
        sa.CheckConstraint("(email_sealed IS NULL) = (email_hash IS NULL)", name="email_whole"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    kind: Mapped[MemberKind] = mapped_column(enum_type(MemberKind), server_default="person")
    role: Mapped[Role] = mapped_column(enum_type(Role))
    email_sealed: Mapped[bytes | None]
    email_hash: Mapped[bytes | None] = mapped_column(unique=True)
    """Keyed: finds the row without opening any (app/identity/emails.py)."""
    password_hash: Mapped[str | None] = mapped_column(sa.String(200))
    """Argon2id, with its parameters and salt."""
    totp_sealed: Mapped[bytes | None]
    """The second factor's secret, once a code of it was shown."""
    totp_offered_sealed: Mapped[bytes | None]
    """A secret that was handed out and of which no code came yet."""
    totp_last_step: Mapped[int | None]
    """The time step of the last code that was taken: none is taken twice."""
    token_epoch: Mapped[int] = mapped_column(server_default="0", default=0)
    """Access tokens of an earlier epoch are refused; written by sessions.end_all() alone."""
    token_epoch_at: Mapped[datetime | None]
    suspended_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class ApiKey(Base):
    """A bearer secret of a member, shown once; only its HMAC is kept."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    member_id: Mapped[UUID] = mapped_column(sa.ForeignKey("members.id"), index=True)
    key_id: Mapped[str] = mapped_column(sa.String(16), unique=True)
    """The public part, by which the row is found."""
    secret_hmac: Mapped[bytes]
    label: Mapped[str] = mapped_column(sa.String(200))
    scopes: Mapped[list[Any] | None]
    """The permissions that it is good for, of those that the role holds; None: all of them."""
    networks: Mapped[list[Any] | None]
    """The networks (CIDR) from which it is taken; None: from anywhere."""
    replaces: Mapped[UUID | None] = mapped_column(sa.ForeignKey("api_keys.id"))
    """The key that this one was made to follow."""
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    last_used_address: Mapped[str | None] = mapped_column(sa.String(45))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Enrolment(Base):
    """A one-use invitation of one training client, bound to an organisation and a region."""

    __tablename__ = "enrolments"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    region: Mapped[str] = mapped_column(sa.String(64))
    jurisdiction: Mapped[str | None] = mapped_column(sa.String(6))
    """Whose law the data are under, as whoever invites declares it (ISO 3166)."""
    token_hmac: Mapped[bytes] = mapped_column(unique=True)
    budget: Mapped[dict[str, Any]]
    """{"kind": "basic", "epsilon": 8.0, "delta": 1e-5} or {"kind": "renyi", ..., "order": 8.0}."""
    approval: Mapped[Approval] = mapped_column(enum_type(Approval), server_default="automatic")
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    client_id: Mapped[UUID | None]
    created_by: Mapped[str] = mapped_column(sa.String(100))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Client(Base):
    """A training client: one key, one data set, one organisation."""

    __tablename__ = "clients"
    __table_args__ = (sa.CheckConstraint("octet_length(public_key) = 32", name="ed25519_key"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    region: Mapped[str] = mapped_column(sa.String(64))
    jurisdiction: Mapped[str | None] = mapped_column(sa.String(6))
    """That of its invitation; None: undeclared."""
    name: Mapped[str] = mapped_column(sa.String(200))
    public_key: Mapped[bytes] = mapped_column(unique=True)
    """Raw Ed25519 key, 32 bytes; the former one of a rotation is in former_client_keys."""
    state: Mapped[ClientState] = mapped_column(enum_type(ClientState), default=ClientState.ACTIVE)
    token_epoch: Mapped[int] = mapped_column(server_default="0", default=0)
    """Access tokens of an earlier epoch are refused."""
    token_epoch_at: Mapped[datetime | None]
    capability: Mapped[dict[str, Any]]
    """What the client declared of itself, and what the server concluded (`assessment`)."""
    enrolled_from: Mapped[bytes | None]
    """Keyed hash of the network that it enrolled from: says which clients came from one, and not which."""
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class SigningKey(Base):
    """An Ed25519 key that signs tokens and certificates."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    state: Mapped[KeyState] = mapped_column(enum_type(KeyState))
    public_key: Mapped[bytes]
    sealed_private_key: Mapped[bytes]
    retired_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class UsedAssertion(Base):
    """The id of a client assertion that was exchanged: none is taken twice."""

    __tablename__ = "used_assertions"

    jti: Mapped[str] = mapped_column(sa.String(100), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class UsedProof(Base):
    """A proof of possession that came with a request: none is taken twice."""

    __tablename__ = "used_proofs"

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    """SHA-256 of the key's thumbprint and the proof's id."""
    ends_at: Mapped[datetime] = mapped_column(index=True)


class ClientCertificate(Base):
    """A short-lived certificate that was issued to a training client."""

    __tablename__ = "client_certificates"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), index=True)
    thumbprint: Mapped[str] = mapped_column(sa.String(43), unique=True)
    """Base64url of the SHA-256 of its DER form, as tokens name it."""
    ends_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class FormerClientKey(Base):
    """A key that a training client gave up: taken beside the new one until its overlap is over.

    The row stays, so that nobody else ever enrols with the key.
    """

    __tablename__ = "former_client_keys"
    __table_args__ = (sa.CheckConstraint("octet_length(public_key) = 32", name="ed25519_key"),)

    public_key: Mapped[bytes] = mapped_column(primary_key=True)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), index=True)
    until: Mapped[datetime]


class MemberSession(Base):
    """What a sign-in opened: a family of one-use refresh tokens. It is not prolonged by using it."""

    __tablename__ = "member_sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    member_id: Mapped[UUID] = mapped_column(sa.ForeignKey("members.id"), index=True)
    method: Mapped[str] = mapped_column(sa.String(64))
    """`password`, or the name of the issuer."""
    second_factor: Mapped[bool]
    """Whether a second factor was shown, here or to the issuer."""
    address: Mapped[str | None] = mapped_column(sa.String(45))
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
    ended_why: Mapped[SessionEnd | None] = mapped_column(enum_type(SessionEnd))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class RefreshToken(Base):
    """A refresh token that was handed out. Used ones are kept while their session lasts: that is how a
    second use is known for what it is."""

    __tablename__ = "refresh_tokens"

    token_hmac: Mapped[bytes] = mapped_column(primary_key=True)
    session_id: Mapped[UUID] = mapped_column(
        sa.ForeignKey("member_sessions.id", ondelete="CASCADE"), index=True
    )
    used_at: Mapped[datetime | None]


class RecoveryCode(Base):
    """A code that stands in for the second factor, once."""

    __tablename__ = "recovery_codes"

    member_id: Mapped[UUID] = mapped_column(sa.ForeignKey("members.id"), primary_key=True)
    code_hmac: Mapped[bytes] = mapped_column(primary_key=True)
    used_at: Mapped[datetime | None]


class PasswordToken(Base):
    """A one-use token with which a member sets a password: an invitation, or a reset."""

    __tablename__ = "password_tokens"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    member_id: Mapped[UUID] = mapped_column(sa.ForeignKey("members.id"), index=True)
    purpose: Mapped[TokenPurpose] = mapped_column(enum_type(TokenPurpose))
    token_hmac: Mapped[bytes] = mapped_column(unique=True)
    drops_second_factor: Mapped[bool]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    created_by: Mapped[str] = mapped_column(sa.String(100))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Attempts(Base):
    """How often one kind of attempt failed of late, by a keyed hash of what was attempted.

    There is a row for an e-mail that nobody has as for one that somebody has.
    """

    __tablename__ = "attempts"

    key_hmac: Mapped[bytes] = mapped_column(primary_key=True)
    failures: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(index=True)


class OidcIdentity(Base):
    """Who an issuer means by a subject. Made at the first sign-in; from then on the subject alone counts."""

    __tablename__ = "oidc_identities"

    issuer: Mapped[str] = mapped_column(sa.String(300), primary_key=True)
    subject: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    member_id: Mapped[UUID] = mapped_column(sa.ForeignKey("members.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class OidcLogin(Base):
    """A sign-in through an issuer, on its way: each step finds it once."""

    __tablename__ = "oidc_logins"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    issuer_name: Mapped[str] = mapped_column(sa.String(64))
    state_hmac: Mapped[bytes] = mapped_column(unique=True)
    """Of the `state` that the issuer sends back."""
    sealed: Mapped[bytes]
    """The nonce and the PKCE verifier towards the issuer."""
    redirect_uri: Mapped[str] = mapped_column(sa.String(500))
    """Where the browser goes in the end, and the caller's own state and PKCE challenge."""
    caller_state: Mapped[str] = mapped_column(sa.String(500))
    code_challenge: Mapped[str] = mapped_column(sa.String(64))
    code_hmac: Mapped[bytes | None] = mapped_column(unique=True)
    """Of our own code, once the issuer has said who it is."""
    member_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("members.id"))
    second_factor: Mapped[bool]
    expires_at: Mapped[datetime] = mapped_column(index=True)
