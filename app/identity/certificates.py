"""Client certificates for a day: signed for a training client that is known by its token, noted, revocable.

A certificate gives nothing by itself: it is what a token may be bound to (RFC 8705) where a client cannot or
need not sign a proof for each request. Whether it still counts is asked of the table at each request, so a
revocation holds at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.orm import Session

from app.audit.actions import Action
from app.core import clock
from app.core.authority import Authority, RequestRefused, pem_of
from app.core.errors import Conflict, Invalid, NotFound
from app.core.i18n import _
from app.core.settings import Settings
from app.identity import queries
from app.identity.models import Client, ClientCertificate
from app.identity.noting import note_client
from app.identity.possession import certificate_thumbprint
from app.identity.roles import Principal

MOST_VALID = 5
"""Certificates of one client that hold at the same time."""


class NoAuthority(Conflict):
    """This server issues no certificates."""

    code, title = "no_authority", _("No certificates are issued here")
    meaning = _("The operator has given this server no key of a certificate authority.")
    remedy = _("Use DPoP proofs (RFC 9449), which need no certificate, or ask the operator.")


class RequestInvalid(Invalid):
    """The signing request cannot be signed."""

    code, title = "signing_request_invalid", _("Certificate signing request does not hold")
    meaning = _("The text is no PKCS #10 request for a P-256 or Ed25519 key, signed by that key.")
    remedy = _("Make a request with a new key, such as `openssl req -new -newkey ec ...`, and send its PEM.")


class TooManyCertificates(Conflict):
    """The client has enough that still hold."""

    code, title = "too_many_certificates", _("Too many certificates hold at once")
    meaning = _("A training client may have a few certificates at a time, so that it can change over.")
    remedy = _("Use one that you have, revoke one, or wait until the oldest ends.")


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate with its authority's."""

    row: ClientCertificate
    certificate_pem: str
    authority_pem: str


def issue(
    session: Session,
    principal: Principal,
    settings: Settings,
    authority: Authority | None,
    *,
    request_pem: str,
) -> Issued:
    """Sign a certificate for the calling training client.

    Raises NoAuthority, RequestInvalid, TooManyCertificates.
    """
    if authority is None:
        raise NoAuthority(_("this server has no certificate authority"))
    client = session.get_one(Client, principal.id, with_for_update=True)
    _require_room(session, client)
    try:
        certificate = authority.for_client(
            request_pem,
            name=str(client.id),
            uri=f"urn:dpfl:client:{client.id}",
            at=clock.now(),
            lifetime=timedelta(seconds=settings.client_certificate_s),
        )
    except RequestRefused as error:
        raise RequestInvalid(
            _("the signing request cannot be signed: {reason}"), reason=str(error)
        ) from error
    row = ClientCertificate(
        thumbprint=certificate_thumbprint(certificate.public_bytes(Encoding.DER)),
        client_id=client.id,
        ends_at=certificate.not_valid_after_utc,
    )
    session.add(row)
    session.flush()
    told = {"certificate_id": str(row.id), "thumbprint": row.thumbprint}
    note_client(session, Action.CERTIFICATE_ISSUED, client, actor=principal.actor, **told)
    return Issued(row, pem_of(certificate).decode(), pem_of(authority.certificate).decode())


def _require_room(session: Session, client: Client) -> None:
    valid = sa.select(sa.func.count()).where(
        ClientCertificate.client_id == client.id,
        ClientCertificate.revoked_at.is_(None),
        ClientCertificate.ends_at > clock.now(),
    )
    if (session.scalar(valid) or 0) >= MOST_VALID:
        raise TooManyCertificates(_("at most {most} certificates hold at once"), most=MOST_VALID)


def revoke(
    session: Session, principal: Principal, client_id: UUID, certificate_id: UUID
) -> ClientCertificate:
    """Take a certificate back; tokens that are bound to it are refused from now on. Raises NotFound."""
    client = queries.client(session, principal, client_id, "certificates:revoke")
    row = session.get(ClientCertificate, certificate_id, with_for_update=True)
    if row is None or row.client_id != client.id:
        raise NotFound(_("there is no such certificate"))
    if row.revoked_at is None:
        row.revoked_at = clock.now()
        told = {"certificate_id": str(row.id), "thumbprint": row.thumbprint}
        note_client(session, Action.CERTIFICATE_REVOKED, client, actor=principal.actor, **told)
    session.flush()
    return row


def certificates_of(session: Session, principal: Principal, client_id: UUID) -> sa.Select[ClientCertificate]:
    """A client's certificates that the caller may see; raises NotFound."""
    client = queries.client(session, principal, client_id, "certificates:read")
    return sa.select(ClientCertificate).where(ClientCertificate.client_id == client.id)
