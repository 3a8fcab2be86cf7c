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

    ACTIVE = "active"  # may get tokens and take part
    SUSPENDED = "suspended"  # gets no token; its running tokens are refused


class KeyState(StrEnum):
    """The life of a token-signing key."""

    NEXT = "next"  # published in the JWKS, signs nothing yet
    CURRENT = "current"  # signs
    RETIRED = "retired"  # verifies until its last token has expired


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

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    role: Mapped[Role] = mapped_column(enum_type(Role))
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
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Enrolment(Base):
    """A one-use invitation of one training client, bound to an organisation and a region."""

    __tablename__ = "enrolments"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    region: Mapped[str] = mapped_column(sa.String(64))
    token_hmac: Mapped[bytes] = mapped_column(unique=True)
    budget: Mapped[dict[str, Any]]
    """{"kind": "basic", "epsilon": 8.0, "delta": 1e-5} or {"kind": "renyi", ..., "order": 8.0}."""
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
    name: Mapped[str] = mapped_column(sa.String(200))
    public_key: Mapped[bytes] = mapped_column(unique=True)
    """Raw Ed25519 key, 32 bytes."""
    state: Mapped[ClientState] = mapped_column(enum_type(ClientState), default=ClientState.ACTIVE)
    capability: Mapped[dict[str, Any]]
    """What the client declared of itself, and what the server concluded (`assessment`)."""
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class SigningKey(Base):
    """An Ed25519 key that signs tokens and certificates."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    state: Mapped[KeyState] = mapped_column(enum_type(KeyState))
    public_key: Mapped[bytes]
    sealed_private_key: Mapped[bytes]
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
