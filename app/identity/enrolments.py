"""Enrolment of training clients: one invitation, one key that proves itself, one client.

The invitation is a secret that is shown once and works once. Whoever presents it also proves to hold the
private key that will sign for the client from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core import clock
from app.core.crypto import Vault
from app.core.errors import Conflict, NotFound, Unauthorized
from app.core.i18n import _
from app.core.ids import new_id
from app.identity.capability import AssessedCapability, Capability, assess
from app.identity.credentials import is_enrolment_token, mint_enrolment_token
from app.identity.models import Approval, Client, ClientState, Enrolment, FormerClientKey, Organisation
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.security import events
from app.security.models import Severity

BURST = 50
"""Clients of one organisation within an hour that are nothing to speak of."""
PROOF_PREFIX = b"dpfl-enrol-v1\0"
_PURPOSE = "enrolment-token"
_NETWORK = "enrolment-network"


class EnrolmentUnknown(Unauthorized):
    """No such enrolment token."""

    code, title = "enrolment_unknown", _("Unknown enrolment token")
    meaning = _("The enrolment token was not issued by this federation, or was mistyped.")
    remedy = _("Copy the token again as a whole, or ask your coordinator for a new one.")


class EnrolmentUsed(Conflict):
    """The token did its work already."""

    code, title = "enrolment_used", _("Enrolment token used already")
    meaning = _("An enrolment token enrols one training client; this one has done so.")
    remedy = _("Ask your coordinator for a new token, and who has used this one.")


class EnrolmentExpired(Conflict):
    """The token's time is over."""

    code, title = "enrolment_expired", _("Enrolment token expired")
    meaning = _("The time in which this enrolment token could be used is over.")
    remedy = _("Ask your coordinator for a new token.")


class ProofInvalid(Unauthorized):
    """The signature does not fit the public key."""

    code, title = "proof_invalid", _("Proof of possession does not hold")
    meaning = _("The proof is not a signature of the public key over this enrolment token.")
    remedy = _("Sign the prefix, the token, a zero byte and the raw public key with the same private key.")


class KeyTaken(Conflict):
    """Another client has the key."""

    code, title = "key_taken", _("Key taken")
    meaning = _("Another training client is enrolled with this public key; no two share one.")
    remedy = _("Make a new key pair for this data set.")


@dataclass(frozen=True, slots=True)
class NewEnrolment:
    """A new invitation; `token` exists nowhere else from now on."""

    row: Enrolment
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What a machine sends to become a training client."""

    token: str
    name: str
    public_key: bytes
    proof: bytes
    capability: Capability
    network: str | None = None
    """By what its caller is counted (app/core/networks.py)."""


def create_enrolment(
    session: Session,
    principal: Principal,
    vault: Vault,
    *,
    organisation_id: UUID,
    region: str,
    budget: dict[str, Any],
    default: tuple[float, float],
    expires_in_s: int,
    approval: Approval = Approval.AUTOMATIC,
    jurisdiction: str | None = None,
) -> NewEnrolment:
    """Invite one training client into an organisation and a region, under stated budget terms.

    Terms above the server's default (epsilon, delta) are a grant, and need the right to grant.
    """
    reaches_all = scope_of(principal, "enrolments:create") is Scope.FEDERATION
    if not reaches_all and organisation_id != principal.organisation_id:
        raise NotFound(_("there is no such organisation"))
    if session.get(Organisation, organisation_id) is None:
        raise NotFound(_("there is no such organisation"))
    if budget["epsilon"] > default[0] or budget["delta"] > default[1]:
        scope_of(principal, "budgets:grant")
    token = mint_enrolment_token()
    row = Enrolment(
        organisation_id=organisation_id,
        region=region,
        jurisdiction=jurisdiction,
        token_hmac=vault.fingerprint(_PURPOSE, token),
        budget=budget,
        approval=approval,
        expires_at=clock.now() + timedelta(seconds=expires_in_s),
        created_by=principal.actor,
    )
    session.add(row)
    session.flush()
    _note(session, row)
    return NewEnrolment(row=row, token=token)


def _note(session: Session, row: Enrolment) -> None:
    record(
        session,
        action=Action.ENROLMENT_CREATED,
        actor=row.created_by,
        organisation_id=row.organisation_id,
        subject=f"enrolment:{row.id}",
        details={"region": row.region, "jurisdiction": row.jurisdiction}
        | {"expires_at": row.expires_at.isoformat()}
        | {name: str(value) for name, value in row.budget.items()},
    )


def redeem(session: Session, vault: Vault, application: Application) -> tuple[Client, Enrolment, bool]:
    """Turn an invitation into a client: (client, enrolment, whether it is new).

    The row is locked, so of any number of racing callers exactly one makes a client. The same key with
    the same token again finds the client that it made: an answer that was lost can be asked for again.
    """
    _check_proof(application)
    enrolment = _issued(session, vault, application.token, lock=True)
    if enrolment.used_at is not None and enrolment.client_id is not None:
        former = session.get(Client, enrolment.client_id)
        if former is not None and former.public_key == application.public_key:
            return former, enrolment, False
    _require_open(enrolment)
    client = _add_client(session, vault, enrolment, application)
    enrolment.used_at, enrolment.client_id = clock.now(), client.id
    session.flush()
    _note_burst(session, client)
    return client, enrolment, True


def check_token(session: Session, vault: Vault, token: str) -> Enrolment:
    """Find the invitation of a token that would enrol a client now; refuses it as `redeem` would."""
    enrolment = _issued(session, vault, token, lock=False)
    _require_open(enrolment)
    return enrolment


def _issued(session: Session, vault: Vault, token: str, *, lock: bool) -> Enrolment:
    if not is_enrolment_token(token):
        raise EnrolmentUnknown(_("this is not an enrolment token: its form or its checksum is wrong"))
    sought = sa.select(Enrolment).where(Enrolment.token_hmac == vault.fingerprint(_PURPOSE, token))
    enrolment = session.scalar(sought.with_for_update() if lock else sought)
    if enrolment is None:
        raise EnrolmentUnknown(_("there is no such enrolment token"))
    return enrolment


def _require_open(enrolment: Enrolment) -> None:
    if enrolment.used_at is not None:
        raise EnrolmentUsed(_("this enrolment token was used"), used_at=enrolment.used_at.isoformat())
    if enrolment.expires_at <= clock.now():
        raise EnrolmentExpired(
            _("this enrolment token expired"),
            expired_at=enrolment.expires_at.isoformat(),
            server_time=clock.now().isoformat(),
        )


def _note_burst(session: Session, client: Client) -> None:
    """Note an organisation of which many clients come within an hour: one machine may be all of them."""
    recent = sa.select(sa.func.count(), sa.func.count(Client.enrolled_from.distinct())).where(
        Client.organisation_id == client.organisation_id, Client.created_at > clock.now() - timedelta(hours=1)
    )
    count, networks = session.execute(recent).one()
    if count > BURST:
        events.note(
            session,
            kind="burst_registration",
            subject=f"organisation:{client.organisation_id}",
            organisation_id=client.organisation_id,
            severity=Severity.NOTICE,
            evidence={"clients_within_an_hour": count, "networks": networks},
        )


def _add_client(session: Session, vault: Vault, enrolment: Enrolment, application: Application) -> Client:
    if session.get(FormerClientKey, application.public_key) is not None:
        raise KeyTaken(_("a training client has this public key already"))
    is_let_in = enrolment.approval is Approval.AUTOMATIC
    declared = application.capability
    network = application.network
    assessed = AssessedCapability(**declared.model_dump(), assessment=assess(declared))
    client: Client | None = session.scalar(
        insert(Client)
        .values(
            id=new_id(),
            organisation_id=enrolment.organisation_id,
            region=enrolment.region,
            jurisdiction=enrolment.jurisdiction,
            name=application.name,
            public_key=application.public_key,
            state=ClientState.ACTIVE if is_let_in else ClientState.PENDING,
            capability=assessed.model_dump(mode="json"),
            enrolled_from=None if network is None else vault.fingerprint(_NETWORK, network),
        )
        .on_conflict_do_nothing(index_elements=["public_key"])
        .returning(Client)
    )
    if client is None:
        raise KeyTaken(_("a training client has this public key already"))
    return client


def _check_proof(application: Application) -> None:
    message = PROOF_PREFIX + application.token.encode() + b"\0" + application.public_key
    try:
        Ed25519PublicKey.from_public_bytes(application.public_key).verify(application.proof, message)
    except (InvalidSignature, ValueError) as error:
        raise ProofInvalid(_("the proof is not a signature of the public key over this token")) from error
