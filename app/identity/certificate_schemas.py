"""JSON bodies of client certificates."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, StringConstraints

from app.core.authority import MOST_REQUEST_CHARACTERS
from app.core.strict import StrictModel
from app.identity.schemas import View

Pem = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MOST_REQUEST_CHARACTERS)]


class CertificateIn(StrictModel):
    """A request for a client certificate."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "signing_request": "-----BEGIN CERTIFICATE REQUEST-----\nMIHy...\n"
                    "-----END CERTIFICATE REQUEST-----\n"
                }
            ]
        }
    )

    signing_request: Pem
    """PKCS #10 in PEM, for a P-256 or Ed25519 key; only its key is looked at."""


class CertificateView(View):
    """A client certificate that was issued."""

    id: UUID
    client_id: UUID
    thumbprint: str
    """Base64url of the SHA-256 of its DER form."""
    ends_at: datetime
    revoked_at: datetime | None
    created_at: datetime


class CertificateOnce(CertificateView):
    """A new certificate, with that of its authority."""

    certificate: str
    """PEM."""
    authority: str
    """PEM."""
