"""What a client declares about the update that it sends, held against the plan before anything is charged.

Under local trust the server cannot see whether noise was added. It can see that a client says that it added
none, or another amount: such an update is refused, and what was said is kept. A client that says nothing,
or lies, is not found here.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.orm import Session

from app.budget import violations
from app.budget.violations import ViolationKind
from app.core.canonical import canonical_sha256
from app.core.errors import Invalid
from app.core.i18n import _
from app.core.strict import Hex64
from app.identity.clients import signed_by_client
from app.identity.models import Client
from app.identity.roles import Principal
from app.rounds.models import Round
from app.runs.models import Run

HEADER = "DPFL-Declaration"
MOST_CHARACTERS = 8192

_Number = Annotated[float, Field(allow_inf_nan=False)]


class DeclarationInvalid(Invalid):
    """A declaration that is not readable, not signed by the client, or of another update."""

    code, title = "declaration_invalid", _("The declaration does not hold")
    meaning = _("What the client declares has to be signed with its key and name this round and these bytes.")
    remedy = _("Send the declaration that the training client wrote for this update, or none.")


class NoiseDiffers(Invalid):
    """A client that says itself that its update has not the plan's noise."""

    code, title = "noise_differs", _("The declared noise is not the plan's")
    meaning = _("By its own declaration the update was clipped or noised otherwise than the plan demands.")
    remedy = _("Train with the plan's noise in a later round. Nothing was charged here.")

    def __init__(self, kind: ViolationKind, detail: dict[str, Any]) -> None:
        super().__init__(_("the update is declared without the noise or the clip of its plan"))
        self.kind, self.violation = kind, detail


class Declared(BaseModel):
    """What matters here of a declaration; it says more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    client_id: UUID
    run_id: UUID
    number: Annotated[int, Field(strict=True)]
    manifest_sha256: Hex64
    update_sha256: Hex64
    noise_by_client: Annotated[bool, Field(strict=True)]
    noise_multiplier: _Number | None
    clip_norm: _Number | None


def check(
    session: Session, principal: Principal, round_: Round, run: Run, *, declared: str, sha256: str
) -> None:
    """Hold a declaration against the plan of a run under local trust.

    Args:
        session: the transaction that would admit the update.
        principal: the client that sends.
        round_: the round that it sends for.
        run: the round's run.
        declared: base64url of `{"declaration": {...}, "signature": ...}`; the signature is Ed25519, over the
            SHA-256 of the declaration's canonical form.
        sha256: digest of the update that is announced.
    Raises:
        DeclarationInvalid, NoiseDiffers.
    """
    found = _signed(session, session.get_one(Client, principal.id), declared)
    told = (found.client_id, found.run_id, found.number, found.manifest_sha256, found.update_sha256)
    if told != (principal.id, run.id, round_.number, run.manifest_sha256, sha256):
        raise DeclarationInvalid(_("the declaration is of another update"))
    privacy = run.manifest["privacy"]
    kind = None
    if not found.noise_by_client or not found.noise_multiplier:
        kind = ViolationKind.MISSING_NOISE
    elif (found.noise_multiplier, found.clip_norm) != (privacy["noise_multiplier"], privacy["clip_norm"]):
        kind = ViolationKind.SCALED_NOISE
    if kind is not None:
        names = ("noise_multiplier", "clip_norm")
        detail = {
            "round": round_.number,
            "declared": {name: getattr(found, name) for name in names},
            "planned": {name: privacy[name] for name in names},
        }
        raise NoiseDiffers(kind, detail)


def note(session: Session, *, principal: Principal, round_id: UUID, refused: NoiseDiffers) -> None:
    """Keep what a client declared first for a round; in a transaction of its own, as the other was ended.

    Whatever else it declares for that round is refused as well, and adds nothing.
    """
    round_ = session.get_one(Round, round_id)
    violations.record_first(
        session,
        refused.kind,
        once=f"client:{principal.id}:round:{round_id}",
        organisation_id=round_.organisation_id,
        run_id=round_.run_id,
        client_id=principal.id,
        detail=refused.violation,
    )


def _signed(session: Session, client: Client, declared: str) -> Declared:
    if len(declared) > MOST_CHARACTERS:
        raise DeclarationInvalid(_("the declaration is too long"))
    try:
        whole = json.loads(base64.b64decode(declared, altchars=b"-_", validate=True))
        body, signature = whole["declaration"], base64.b64decode(whole["signature"], validate=True)
        digest = bytes.fromhex(canonical_sha256(body))
        if not signed_by_client(session, client, signature, digest):
            raise DeclarationInvalid(_("the declaration is not signed with the client's key"))
        return Declared.model_validate(body)
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DeclarationInvalid(_("the declaration is not readable")) from error
