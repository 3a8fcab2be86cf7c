"""The standing of training clients: approved or not, revoked for good, and with which key they sign.

Suspending and reinstating is in app/identity/service.py; moving, which looks at budgets and runs, in
app/runs/moving.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit.record import Action
from app.core import clock
from app.core.db import notify
from app.core.errors import Forbidden, IllegalTransition, NotFound, Unauthorized
from app.core.i18n import _
from app.identity import queries
from app.identity.enrolments import KeyTaken
from app.identity.keys import CHANNEL
from app.identity.models import Client, ClientState, FormerClientKey
from app.identity.noting import note_client
from app.identity.roles import Principal

_ACTS = {
    ClientState.ACTIVE: Action.CLIENT_APPROVED,
    ClientState.REJECTED: Action.CLIENT_REJECTED,
    ClientState.REVOKED: Action.CLIENT_REVOKED,
}
ROTATION_PREFIX = b"dpfl-rotate-v1\0"


class ClientPending(Forbidden):
    """Enrolled, and not let in yet."""

    code, title = "client_pending", _("Waiting for approval")
    meaning = _(
        "The invitation asks for approval: an administrator or coordinator looks at the client first."
    )
    remedy = _("Ask your coordinator to approve the client, then ask for a token again.")


class ClientRevoked(Forbidden):
    """Not let in, for good."""

    code, title = "client_revoked", _("Client revoked")
    meaning = _("The training client was rejected or revoked, for good: its key is not trusted.")
    remedy = _("Ask your coordinator why. A new invitation makes a new client with a new key.")


class RotationProofInvalid(Unauthorized):
    """The new key is not vouched for."""

    code, title = "rotation_proof_invalid", _("Proof of rotation does not hold")
    meaning = _("One of the two proofs is not a signature by the present or the new key over this rotation.")
    remedy = _("Sign the prefix, the client id, a zero byte and the raw new key with both private keys.")


def require_active(client: Client) -> None:
    """Refuse a token to a client that may not act, except for a suspension, which has its own refusal."""
    if client.state is ClientState.PENDING:
        raise ClientPending(_("this training client waits for approval"))
    if client.state in {ClientState.REJECTED, ClientState.REVOKED}:
        raise ClientRevoked(_("this training client is {state}"), state=client.state.value)


def approve_client(session: Session, principal: Principal, client_id: UUID) -> Client:
    """Let a waiting client in. Raises NotFound, and IllegalTransition for one that does not wait."""
    return _become(
        session,
        principal,
        client_id,
        ClientState.ACTIVE,
        sources={ClientState.PENDING},
        permission="clients:approve",
    )


def reject_client(session: Session, principal: Principal, client_id: UUID) -> Client:
    """Refuse a waiting client, for good."""
    return _become(
        session,
        principal,
        client_id,
        ClientState.REJECTED,
        sources={ClientState.PENDING},
        permission="clients:approve",
    )


def revoke_client(session: Session, principal: Principal, client_id: UUID) -> Client:
    """Trust a client's key no more, for good: it gets no token, and running ones stop everywhere."""
    sources = {ClientState.PENDING, ClientState.ACTIVE, ClientState.SUSPENDED}
    return _become(
        session, principal, client_id, ClientState.REVOKED, sources=sources, permission="clients:revoke"
    )


def _become(
    session: Session,
    principal: Principal,
    client_id: UUID,
    state: ClientState,
    *,
    sources: set[ClientState],
    permission: str,
) -> Client:
    row = _locked(session, principal, client_id, permission)
    if row.state is not state or state is ClientState.ACTIVE:
        if row.state not in sources:
            raise IllegalTransition(_("the client is {state}"), state=row.state.value)
        row.state = state
        session.flush()
        notify(session, CHANNEL, str(client_id))
        note_client(session, _ACTS[state], row, actor=principal.actor)
    return row


def rotate_client_key(
    session: Session,
    principal: Principal,
    client_id: UUID,
    *,
    public_key: bytes,
    proof: bytes,
    own_proof: bytes,
    overlap_s: int,
) -> Client:
    """Take a new key for a client: vouched for by the present one, and shown to be held.

    A stolen access token is not enough, since the present private key signs. The former key is taken for
    `overlap_s` seconds more; with 0 its running tokens end too. Asked again after a lost answer it changes
    nothing. Raises NotFound, RotationProofInvalid, KeyTaken.
    """
    row = _locked(session, principal, client_id, "clients:rotate_key")
    message = ROTATION_PREFIX + str(client_id).encode() + b"\0" + public_key
    is_repeated = row.public_key == public_key
    vouching = former_keys(session, row.id, usable=False) if is_repeated else [row.public_key]
    if not any(_signed(key, proof, message) for key in vouching) or not _signed(
        public_key, own_proof, message
    ):
        raise RotationProofInvalid(_("the proof of rotation does not hold"))
    if is_repeated:
        return row
    if is_known_key(session, public_key):
        raise KeyTaken(_("a training client has this public key already"))
    until = clock.now() + timedelta(seconds=overlap_s)
    try:
        with session.begin_nested():
            session.add(FormerClientKey(public_key=row.public_key, client_id=row.id, until=until))
            row.public_key = public_key
            session.flush()
    except IntegrityError as error:  # another client has just come with the same key
        raise KeyTaken(_("a training client has this public key already")) from error
    if overlap_s == 0:
        _end_tokens(session, row)
    note_client(session, Action.CLIENT_KEY_ROTATED, row, actor=principal.actor, overlap_s=overlap_s)
    return row


def change_organisation(session: Session, client: Client, organisation_id: UUID, *, actor: str) -> None:
    """Write another organisation into a client's locked row; tokens that name the former one end."""
    former, client.organisation_id = client.organisation_id, organisation_id
    _end_tokens(session, client)
    note_client(session, Action.CLIENT_MOVED, client, actor=actor, former_organisation_id=str(former))


def former_keys(session: Session, client_id: UUID, *, usable: bool = True) -> Sequence[bytes]:
    """The keys that a client gave up; `usable`: those whose overlap is not over."""
    statement = sa.select(FormerClientKey.public_key).where(FormerClientKey.client_id == client_id)
    if usable:
        statement = statement.where(FormerClientKey.until > clock.now())
    return session.scalars(statement.order_by(FormerClientKey.until.desc()).limit(20)).all()


def signed_by_client(session: Session, client: Client, signature: bytes, message: bytes) -> bool:
    """Whether the client's key signed this, or a former one whose overlap is not over."""
    keys = [client.public_key, *former_keys(session, client.id)]
    return any(_signed(key, signature, message) for key in keys)


def is_known_key(session: Session, public_key: bytes) -> bool:
    """Whether any client has or had this key."""
    present = sa.select(Client.public_key).where(Client.public_key == public_key)
    former = sa.select(FormerClientKey.public_key).where(FormerClientKey.public_key == public_key)
    return session.scalar(sa.union_all(present, former).limit(1)) is not None


def _locked(session: Session, principal: Principal, client_id: UUID, permission: str) -> Client:
    statement = queries.clients(principal, permission).where(Client.id == client_id)
    row = session.scalar(statement.with_for_update().execution_options(populate_existing=True))
    if row is None:
        raise NotFound(_("there is no such client"))
    return row


def _end_tokens(session: Session, client: Client) -> None:
    client.token_epoch += 1
    client.token_epoch_at = clock.now()
    session.flush()
    notify(session, CHANNEL, str(client.id))


def _signed(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
