"""The audit log over HTTP: entries with receipts, checkpoints, proofs and the export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from app.admin import audit_access as access
from app.admin.audit_schemas import (
    AuditEntryInFull,
    AuditEntryOut,
    AuditKeyOut,
    AuditKeySet,
    AuditReceiptOut,
    ConsistencyOut,
    InclusionOut,
    OpeningOut,
)
from app.audit import export, keys, queries, tree
from app.audit.models import AuditEntry
from app.audit.queries import Filters
from app.audit.record import Action
from app.audit.sequencer import CHANNEL, GROWN
from app.core.db import Database
from app.core.i18n import _
from app.core.strict import Moment
from app.http.deps import SessionDep, public, requires
from app.http.limits import limited
from app.http.longpoll import WaitS, read_when
from app.http.pagination import Page, PageDep, page
from app.http.routes import ThreadedRoute
from app.identity.roles import Principal

T = TypeVar("T")
router = APIRouter(prefix="/audit", tags=["audit"], route_class=ThreadedRoute)
open_router = APIRouter(
    prefix="/audit",
    tags=["audit"],
    route_class=ThreadedRoute,
    dependencies=[
        public("what everybody must be able to compare, to see that the log is one"),
        limited("audit", per_minute=240),
    ],
)

CanReadAudit = Annotated[Principal, requires("audit:read")]
CanExportAudit = Annotated[Principal, requires("audit:export")]
Number = Annotated[int, Query(ge=0, le=2**62)]
_PATTERN = r"^[A-Za-z0-9_.:-]*$"
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The signed text"}
}
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("/entries")
def list_audit_entries(
    *,
    session: SessionDep,
    principal: CanReadAudit,
    params: PageDep,
    action: Annotated[Action | None, Query(description="Only acts of this kind.")] = None,
    subject: Annotated[
        str | None, Query(max_length=200, pattern=_PATTERN, description="Only acts on this, as `kind:id`.")
    ] = None,
    actor: Annotated[
        str | None,
        Query(max_length=100, pattern=_PATTERN, description="Only acts of this one, as `kind:id`."),
    ] = None,
    since: Annotated[Moment | None, Query(description="Only acts from then on.")] = None,
    until: Annotated[Moment | None, Query(description="Only acts before then.")] = None,
) -> Page[AuditEntryOut]:
    """List what was done, newest first: in your organisation, in the federation, or by you."""
    filters = Filters(action=action, subject=subject, actor=actor, since=since, until=until)
    statement = access.visible(principal, filters)
    rows, cursor = page(session, statement, AuditEntry.id, params, newest_first=True)
    return Page(items=[AuditEntryOut.of(row) for row in rows], next_cursor=cursor)


@router.get("/entries/{entry_id}")
async def get_audit_entry(
    entry_id: UUID, request: Request, principal: CanReadAudit, wait: WaitS = 0
) -> AuditEntryInFull:
    """Show an entry with its receipt; with `wait`, hold the answer until the entry has its place.

    `receipt` is null until then: the log is put in order within seconds, behind the acts.
    """

    def read(session: Session) -> AuditEntryInFull:
        return _in_full(session, access.entry_for(session, principal, entry_id))

    return await read_when(
        request,
        read,
        lambda shown: shown.receipt is not None,
        channel=CHANNEL,
        payload=GROWN,
        wait_s=wait,
    )


def _in_full(session: Session, row: AuditEntry) -> AuditEntryInFull:
    receipt = queries.receipt_of(session, row)
    opened = queries.openings(session, row.id)
    return AuditEntryInFull(
        entry=AuditEntryOut.of(row),
        canonical=row.canonical.decode(),
        leaf_hash=row.leaf_hash.hex(),
        openings={name: OpeningOut(salt=salt, value=value) for name, (salt, value) in opened.items()},
        receipt=None if receipt is None else AuditReceiptOut.of(receipt),
    )


@router.get("/proofs/inclusion")
def get_inclusion_proof(
    session: SessionDep, principal: CanReadAudit, index: Number, size: Number
) -> InclusionOut:
    """Prove that the leaf at `index` is in the tree of `size` entries; a leaf tells nothing of its entry."""
    access.require_within(session, size)
    path = _proof(partial(tree.inclusion_proof, session, index=index, size=size))
    leaf = tree.leaf(session, index).hex()
    return InclusionOut(index=index, size=size, leaf_hash=leaf, path=path)


@open_router.get("/proofs/consistency")
def get_consistency_proof(session: SessionDep, first: Number, second: Number) -> ConsistencyOut:
    """Prove that the log of `second` entries begins with the whole log of `first`: nothing was rewritten."""
    access.require_within(session, second)
    path = _proof(partial(tree.consistency_proof, session, first=first, second=second))
    return ConsistencyOut(first=first, second=second, path=path)


def _proof(prove: Callable[[], list[bytes]]) -> list[str]:
    try:
        return [one.hex() for one in prove()]
    except ValueError as error:
        raise access.ProofImpossible(_("there is no proof of these numbers")) from error


@open_router.get("/checkpoint", response_class=Response, responses=_TEXT)
def get_audit_checkpoint(session: SessionDep) -> Response:
    """Show the newest checkpoint: how many entries there are, and the root over them, signed."""
    return Response(access.newest(session).note, media_type="text/plain; charset=utf-8")


@open_router.get("/keys")
def get_audit_keys(session: SessionDep) -> AuditKeySet:
    """Show the public keys that sign checkpoints. Keep them elsewhere: a log cannot vouch for its own key."""
    return AuditKeySet(keys=[AuditKeyOut.of(row) for row in keys.public_keys(session)])


@router.get("/export", response_class=Response, responses=_LINES)
def export_audit_log(request: Request, session: SessionDep, principal: CanExportAudit) -> Response:
    """Download the log up to its newest checkpoint, for `dpfl audit verify --offline`.

    Entries of other organisations are there as hashes, so that the root can be computed all the same.
    """
    newest, whose = access.newest(session), access.exported_to(principal)
    head, tail = export.head(newest, whose), export.tail(session, newest)
    database: Database = request.app.state.database

    def lines() -> Iterator[bytes]:
        yield head
        for start in export.starts(newest.size):
            with database.run_tx("export audit log") as own:
                piece = export.entries(own, whose, start=start, size=newest.size)
            yield piece
        yield tail

    name = f'attachment; filename="audit-{newest.size}.jsonl"'
    return StreamingResponse(lines(), media_type="application/jsonl", headers={"Content-Disposition": name})
