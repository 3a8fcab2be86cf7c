"""Updates over HTTP: hop by hop, one transaction before the body, one after it, none during it."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from app.budget.schemas import AccountOut
from app.core.crypto import Vault
from app.core.i18n import _
from app.custody.blobs import Blobs
from app.http.deps import SessionDep, presented, requires, short_tx
from app.http.idempotency import IdempotentRoute
from app.http.problems import UnsupportedMedia
from app.identity.roles import Principal
from app.rounds.lifecycle import RoundClosed, purge_late
from app.updates import buffered, declared, service, signing
from app.updates.disclaimers import disclaim
from app.updates.models import Update
from app.updates.schemas import DisclaimerIn, Receipt, UpdateView
from app.updates.stream import Uploads, announced, receive

router = APIRouter(tags=["rounds"], route_class=IdempotentRoute)

_MOST_DIGITS = 5
CanSendUpdates = Annotated[Principal, requires("updates:create")]
BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Content-Digest",
            "in": "header",
            "required": True,
            "description": "RFC 9530; the SHA-256 of the body.",
            "schema": {"type": "string", "pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$"},
            "example": "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
        },
        {
            "name": signing.INPUT,
            "in": "header",
            "required": False,
            "description": "RFC 9421: what the client's key signs of this request. The components are "
            '`"@method" "@target-uri" "content-digest" "content-length"`, the parameters created, keyid (the '
            f'client\'s id), nonce and tag="{signing.TAG}". Required outside development.',
            "schema": {"type": "string", "maxLength": signing.MOST_CHARACTERS},
        },
        {
            "name": signing.SIGNATURE,
            "in": "header",
            "required": False,
            "description": "RFC 9421: the Ed25519 signature.",
            "schema": {"type": "string", "maxLength": signing.MOST_CHARACTERS},
        },
        {
            "name": declared.HEADER,
            "in": "header",
            "required": False,
            "description": "Under local trust: the client's signed declaration of how the update was made, "
            "as base64url. One that names other noise than the plan's is refused and recorded.",
            "schema": {"type": "string", "maxLength": declared.MOST_CHARACTERS},
        },
        {
            "name": buffered.HEADER,
            "in": "header",
            "required": False,
            "description": "In a buffered run: the number of the round from whose adapter the update was "
            "trained.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 10_000},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
}


@router.put(
    "/rounds/{round_id}/updates/{update_id}",
    status_code=201,
    openapi_extra=BODY,
    responses={200: {"model": Receipt, "description": "These bytes are here already"}},
)
async def put_update(
    round_id: UUID, update_id: UUID, request: Request, response: Response, principal: CanSendUpdates
) -> Receipt:
    """Send this client's one update for a round: a safetensors file of the trained tensors' changes.

    The id is the client's choice; the same id with the same bytes is the same PUT. Under local trust the
    round's budget is spent on the headers, before the body; under central trust every client of the run is
    charged for every round, and this PUT spends nothing.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/octet-stream":
        raise UnsupportedMedia
    sent = _sent(request, round_id, update_id)

    def accept(session: Session) -> Receipt:
        vault: Vault = request.app.state.vault
        return _receipt(session, service.accept(session, principal, sent, vault=vault))

    admission = await _admission(request, principal, sent)
    if isinstance(admission, Receipt):
        response.status_code = 200
        return admission
    uploads: Uploads = request.app.state.uploads
    blobs: Blobs = request.app.state.blobs
    with uploads.one(principal.id), blobs.of(principal.organisation_id).writer() as writer:
        await receive(
            request.stream(),
            writer,
            size_bytes=sent.size_bytes,
            sha256=sent.sha256,
            expected=admission.expected,
        )
        await run_in_threadpool(writer.commit)
    try:
        return await short_tx(request, "accept_update", accept)
    except RoundClosed:
        await short_tx(request, "purge_late", lambda session: purge_late(session, round_id, update_id))
        raise


def _sent(request: Request, round_id: UUID, update_id: UUID) -> service.Sent:
    """What the request's head announces; raises LengthRequired or DigestMissing."""
    size_bytes, sha256 = announced(request.headers)
    return service.Sent(
        round_id=round_id,
        update_id=update_id,
        sha256=sha256,
        size_bytes=size_bytes,
        declared=request.headers.get(declared.HEADER),
        base=_base(request),
        signed=signing.head_of(
            request.headers,
            target=presented(request).target,
            is_required=request.app.state.settings.proof_of_possession,
            leeway_s=request.app.state.settings.clock_leeway_s,
        ),
    )


def _base(request: Request) -> int | None:
    told = request.headers.get(buffered.HEADER)
    if told is None:
        return None
    if not (told.isascii() and told.isdecimal() and len(told) <= _MOST_DIGITS):
        raise buffered.BaseInvalid(_("the header {header} holds a round's number"), header=buffered.HEADER)
    return int(told)


async def _admission(
    request: Request, principal: Principal, sent: service.Sent
) -> service.Admission | Receipt:
    """Let an update in, or answer that it is here; what is refused for its noise is recorded."""

    def announce(session: Session) -> service.Admission | Receipt:
        admission = service.announce(session, principal, sent)
        return admission if admission.received is None else _receipt(session, admission.received)

    try:
        return await short_tx(request, "announce_update", announce)
    except declared.NoiseDiffers as refused:
        note = partial(declared.note, principal=principal, round_id=sent.round_id, refused=refused)
        await short_tx(request, "note_noise", note)
        raise


def _receipt(session: Session, update: Update) -> Receipt:
    account, entry_id = service.account_of(session, update), service.entry_of(session, update)
    return Receipt.of(update, account, audit_entry_id=entry_id)


@router.get("/rounds/{round_id}/updates/{update_id}")
def get_update(
    round_id: UUID,
    update_id: UUID,
    session: SessionDep,
    principal: Annotated[Principal, requires("updates:read")],
) -> UpdateView:
    """Where an update is. A client sees its own; the bytes themselves are never shown."""
    row = service.update_for(session, principal, round_id=round_id, update_id=update_id)
    return UpdateView.model_validate(row)


@router.post("/runs/{run_id}/disclaimers", status_code=201)
def disclaim_run(
    run_id: UUID, body: DisclaimerIn, session: SessionDep, principal: CanSendUpdates
) -> AccountOut:
    """Sign that nothing at all was sent for a run that is over: its reservation is given back."""
    account = disclaim(session, principal, run_id, statement=body.statement, signature=body.signature)
    return AccountOut.of(account)
