"""Tokens that are worth nothing without a key: bound by DPoP (RFC 9449) or to a certificate (RFC 8705).

A training client's token is always bound to one of the two; development may do without.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core import clock
from app.core.db import Database
from app.core.dpop import Proof, read_proof
from app.core.errors import Unauthorized
from app.core.i18n import _
from app.core.settings import Settings
from app.core.tokens import TokenRefused
from app.identity.models import ClientCertificate, UsedProof
from app.identity.roles import Role

CONFIRMATION = "cnf"
KEY, CERTIFICATE = "jkt", "x5t#S256"
"""Members of `cnf`: thumbprint of a key, thumbprint of a certificate."""
BEARER, DPOP = "bearer", "dpop"
"""Schemes of the header Authorization."""
_FORGOTTEN_AT_ONCE = 20


class ProofRequired(Unauthorized):
    """A token that anybody could use."""

    code, title = "proof_required", _("Proof of possession required")
    meaning = _("A training client's tokens are bound to a key, so that a stolen one is worth nothing.")
    remedy = _("Send a DPoP proof (RFC 9449) with each request, or use a client certificate.")


class ProofRefused(Unauthorized):
    """The proof does not hold, or is another token's."""

    code, title = "proof_refused", _("Proof of possession does not hold")
    meaning = _("The token is bound to a key or certificate, and the request does not prove to hold it.")
    remedy = _(
        "Sign a fresh proof of this method, address and token with the token's key; check your clock, and "
        "that you call the server by its public address."
    )


class ProofReplayed(Unauthorized):
    """The proof was used before."""

    code, title = "proof_replayed", _("Proof used already")
    is_suspicious = True
    meaning = _("Each proof is good for one request, so that nobody gains by copying one.")
    remedy = _("Sign a fresh proof with a new jti.")


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request shows beside its token."""

    method: str
    target: str
    """Its address by the public URL, whatever stands in between."""
    proof: str | None = None
    """The header DPoP."""
    address: str | None = None
    """The peer's, or what a trusted proxy says."""
    certificate: bytes | None = None
    """The peer's certificate, DER, of this connection or of a trusted proxy's."""


class Possession:
    """Binds new tokens to what was presented, and holds requests to what their tokens are bound to."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._leeway_s = settings.clock_leeway_s
        self._is_required = settings.proof_of_possession

    def confirmation(self, session: Session, client_id: UUID, presented: Presented) -> dict[str, Any]:
        """The claim that binds a training client's new token.

        Returns: `{"cnf": {...}}`, or nothing where development goes without.
        Raises ProofRequired, ProofRefused, ProofReplayed.
        """
        if presented.proof is not None:
            proof = self._read(presented)
            _use_once(session, proof)
            return {CONFIRMATION: {KEY: proof.thumbprint}}
        if presented.certificate is not None:
            _require_own(session, client_id, presented.certificate)
            return {CONFIRMATION: {CERTIFICATE: certificate_thumbprint(presented.certificate)}}
        if self._is_required:
            raise ProofRequired(_("a token is only made for a key: send a DPoP proof"))
        return {}

    def check(
        self, claims: Mapping[str, Any], role: Role, *, scheme: str, token: str, presented: Presented
    ) -> None:
        """Let a request pass that proves what its token is bound to.

        Raises ProofRequired, ProofRefused, ProofReplayed.
        """
        bound = claims.get(CONFIRMATION)
        if bound is None:
            if scheme == DPOP:
                raise ProofRefused(_("this token is bound to no key: send it as a bearer"))
            if role is Role.CLIENT and self._is_required:
                raise ProofRequired(_("this token is bound to no key"))
            return
        if not isinstance(bound, dict) or not bound.keys() & {KEY, CERTIFICATE}:
            raise ProofRefused(_("this token is bound to something unknown"))
        if CERTIFICATE in bound:
            self._check_certificate(bound[CERTIFICATE], claims, presented.certificate)
        if KEY in bound:
            self._check_proof(bound[KEY], scheme=scheme, token=token, presented=presented)
        elif scheme == DPOP:
            raise ProofRefused(_("this token is bound to a certificate: send it as a bearer"))

    def _check_certificate(self, expected: Any, claims: Mapping[str, Any], shown: bytes | None) -> None:
        if shown is None or not _is_of(shown, expected):
            raise ProofRefused(_("this token is bound to another client certificate"))
        with self._database.run_tx("check_certificate") as session:
            _require_own(session, UUID(claims["sub"]), shown)

    def _check_proof(self, key: Any, *, scheme: str, token: str, presented: Presented) -> None:
        if scheme != DPOP or presented.proof is None:
            raise ProofRefused(_("this token comes as `Authorization: DPoP ...` with a proof"))
        proof = self._read(presented, token)
        if not isinstance(key, str) or not hmac.compare_digest(proof.thumbprint, key):
            raise ProofRefused(_("the proof is signed by another key than the token's"))
        with self._database.run_tx("use_proof") as session:
            # Every request of a training client comes here: not one wait for the disk each. A crash may
            # forget the proofs of its last second.
            session.execute(sa.text("SET LOCAL synchronous_commit = off"))
            _use_once(session, proof)

    def _read(self, presented: Presented, token: str | None = None) -> Proof:
        try:
            return read_proof(
                presented.proof or "",
                method=presented.method,
                target=presented.target,
                leeway_s=self._leeway_s,
                access_token=token,
            )
        except TokenRefused as error:
            raise ProofRefused(
                _("the proof does not hold: {reason}; this request is {method} {target}"),
                reason=str(error.reason),
                method=presented.method,
                target=presented.target[:500],
                server_time=clock.now().isoformat(),
            ) from error


def certificate_thumbprint(der: bytes) -> str:
    """Base64url of a certificate's SHA-256 (RFC 8705, section 3.1)."""
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def _is_of(certificate: bytes, expected: Any) -> bool:
    return isinstance(expected, str) and hmac.compare_digest(certificate_thumbprint(certificate), expected)


def _require_own(session: Session, client_id: UUID, certificate: bytes) -> None:
    """Refuse a certificate that was not issued here to this client, has ended, or was taken back."""
    found = session.scalar(
        sa.select(ClientCertificate.id).where(
            ClientCertificate.thumbprint == certificate_thumbprint(certificate),
            ClientCertificate.client_id == client_id,
            ClientCertificate.revoked_at.is_(None),
            ClientCertificate.ends_at > clock.now(),
        )
    )
    if found is None:
        raise ProofRefused(_("the client certificate is not this client's, has ended, or was revoked"))


def _use_once(session: Session, proof: Proof) -> None:
    """Note a proof until its age refuses it anyway, and forget some that are past that."""
    stale = (
        sa.select(UsedProof.digest)
        .where(UsedProof.ends_at < clock.now())
        .limit(_FORGOTTEN_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    session.execute(sa.delete(UsedProof).where(UsedProof.digest.in_(stale.scalar_subquery())))
    digest = hashlib.sha256(f"{proof.thumbprint}\0{proof.jti}".encode()).digest()
    fresh = session.scalar(
        insert(UsedProof)
        .values(digest=digest, ends_at=proof.ends_at)
        .on_conflict_do_nothing()
        .returning(UsedProof.digest)
    )
    if fresh is None:
        raise ProofReplayed(_("this proof was used before"))
