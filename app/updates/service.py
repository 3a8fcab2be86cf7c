"""Taking a client's update: announced in one transaction, accepted in another, the bytes in between.

Under local trust the announcement spends: once the first byte may have arrived, the round is paid for,
whatever becomes of the body. Under central trust the aggregation spends, for every client of the run alike.
One client sends one update for a round, for ever; the same bytes may be sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.audit import queries as audit
from app.audit.record import Action, Detail, record
from app.budget import ledger
from app.budget.queries import AccountView, account_of_client
from app.core.clock import now
from app.core.crypto import Vault
from app.core.errors import Conflict, Invalid, NotFound, TooLarge
from app.core.i18n import _
from app.identity.authentication import Suspended
from app.identity.clients import former_keys, require_active
from app.identity.models import Client, ClientState
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.rounds import lifecycle
from app.rounds.models import Round
from app.rounds.queries import is_assigned, lock_round, rank_of
from app.runs.charges import event_of, is_charged, round_ref, run_ref, schedule
from app.runs.methods import update_tensors
from app.runs.models import Run
from app.runs.queries import runs
from app.runs.rounds import seals_at_deadline
from app.updates import buffered, declared, signing, suspicions
from app.updates.models import Update, UpdateState
from app.updates.wire import Expected, size_bounds


class UpdateConflict(Conflict):
    """Something else than the round's one update of this client."""

    code, title = "update_conflict", _("Another update was announced before")
    meaning = _("A client sends one update for a round. Only the same id with the same bytes is taken again.")
    remedy = _("Send the bytes that were announced first, under their id. Never train the round again.")


class SizeMismatch(Invalid):
    """The announced length cannot be that of an update of this run."""

    code, title = "size_mismatch", _("Not the size of an update of this run")
    meaning = _("The announced length is not that of a file with the manifest's trained tensors.")
    remedy = _("Send the file that the training client wrote for this round, whole.")


class UpdateTooBig(TooLarge):
    """The announced length is over that of an update of this run."""

    code, title = "update_too_big", _("Larger than an update of this run")
    meaning = _("The announced length is over what the manifest's trained tensors and a header need.")
    remedy = _("Send at most as many bytes as the answer names. Nothing was charged.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a PUT announces: the round, the id that the client chose, and the body's digest and length."""

    round_id: UUID
    update_id: UUID
    sha256: str
    size_bytes: int
    declared: str | None = None
    """What the client says of how it was made; looked at under local trust alone."""
    base: int | None = None
    """In a buffered run, the number of the round from whose adapter it was trained."""
    signed: signing.Head | None = None
    """The head of the request, with its signature; None where development goes without one."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What the stream may bring; or the receipt, when the update is here already."""

    expected: Expected
    received: Update | None = None


def announce(session: Session, principal: Principal, sent: Sent) -> Admission:
    """Check everything that the headers tell, spend under local trust, and make room for the update.

    Raises:
        NotFound: the caller is not in the round's cohort.
        UpdateConflict: another id or digest was announced before.
        BaseInvalid, UpdateTooStale, ParticipationsUsed: of a buffered run; see app.updates.buffered.
        RoundClosed: the round takes no updates (one that is here already gets its receipt all the same).
        UpdateTooBig, SizeMismatch: the length is not one of this run; nothing is charged.
        SignatureInvalid, NonceUsed: the head is not signed by this client; see app.updates.signing.
        DeclarationInvalid, NoiseDiffers: by the client's own word this is not what the plan asks for.
    """
    if not is_assigned(session, sent.round_id, principal.id):
        raise NotFound(_("there is no such round"))
    signature = _signature(session, principal, sent)
    round_ = lock_round(session, sent.round_id)
    run = session.get_one(Run, round_.run_id)
    base = buffered.base_of(session, run, round_, sent.base)
    row = _own_update(session, principal, sent, base=base)
    if row is not None and row.state is not UpdateState.RECEIVING:
        return Admission({}, received=row)
    lifecycle.hold_open(session, sent.round_id)
    buffered.require_fresh(session, run, round_, base)
    number, rank = (base or round_).number, rank_of(session, sent.round_id, principal.id)
    expected = update_tensors(run.manifest, number=number, rank=rank)
    _check_size(expected, sent.size_bytes)
    if row is None:
        buffered.require_participation(session, run, principal.id)
    if run.manifest["privacy"]["trust"] == "local":
        _spend(session, principal, base or round_, run, sent)
    if row is None:
        row = _make_room(session, principal, sent, base=base)
        suspicions.note_haste(session, principal, row, trained_from=base or round_, run=run)
    row.round_id = sent.round_id  # a buffer that closed over the same bytes left them to a later one
    signing.keep(session, row, signature)
    return Admission(expected)


def _signature(session: Session, principal: Principal, sent: Sent) -> signing.Signature | None:
    if sent.signed is None:
        return None
    present = session.get_one(Client, principal.id).public_key
    return signing.verified(sent.signed, principal.id, [present, *former_keys(session, principal.id)])


def _make_room(session: Session, principal: Principal, sent: Sent, *, base: Round | None) -> Update:
    made: Update | None = session.scalar(
        insert(Update)
        .values(
            id=sent.update_id,
            round_id=sent.round_id,
            client_id=principal.id,
            organisation_id=principal.organisation_id,
            base_round_id=None if base is None else base.id,
            state=UpdateState.RECEIVING,
            declared_sha256=sent.sha256,
            size_bytes=sent.size_bytes,
        )
        .on_conflict_do_nothing()
        .returning(Update)
    )
    if made is None:  # the id was taken at the same moment, or another update came from the same adapter
        raise UpdateConflict(_("this update id, or this adapter's update of this client, is there already"))
    return made


def _own_update(session: Session, principal: Principal, sent: Sent, *, base: Round | None) -> Update | None:
    """What the caller announced before, for this round or in a buffered run from this base.

    Raises UpdateConflict when it was something else.
    """
    rows = session.scalars(
        sa.select(Update)
        .where(
            sa.or_(
                Update.id == sent.update_id,
                sa.and_(Update.round_id == sent.round_id, Update.client_id == principal.id),
            )
        )
        .execution_options(populate_existing=True)
    ).all()
    if not rows:
        return None
    row = rows[0]
    base_id = None if base is None else base.id
    own = (sent.update_id, principal.id, sent.sha256, base_id)
    is_own = (row.id, row.client_id, row.declared_sha256, row.base_round_id) == own
    if len(rows) > 1 or not is_own or (base is None and row.round_id != sent.round_id):
        raise UpdateConflict(_("this round's update of this client has another id or other bytes"))
    return row


def _check_size(expected: Expected, size_bytes: int) -> None:
    fewest, most = size_bounds(expected)
    if size_bytes > most:
        raise UpdateTooBig(_("an update of this run has at most {most_bytes} bytes"), most_bytes=most)
    if size_bytes < fewest:
        raise SizeMismatch(_("an update of this run has at least {fewest_bytes} bytes"), fewest_bytes=fewest)


def _spend(session: Session, principal: Principal, round_: Round, run: Run, sent: Sent) -> None:
    """Charge the client for the round that it trained, whichever takes the update.

    Not if by its own word it sends what the plan does not ask for.
    """
    if sent.declared is not None:
        declared.check(session, principal, round_, run, declared=sent.declared, sha256=sent.sha256)
    account = account_of_client(session, principal.id)
    ledger.spend_next(
        session,
        account.id,
        ref=round_ref(round_.id),
        reserve_ref=run_ref(run.id),
        parts=[(charge.amount, charge.delta_amount) for charge in schedule(run, account)],
        event=event_of(run) | {"round": round_.number},
        actor=principal.actor,
    )


def accept(session: Session, principal: Principal, sent: Sent, *, vault: Vault) -> Update:
    """The bytes are here, checked and stored under their digest: they become part of the round.

    Seals the round when its cohort is complete, unless its run keeps it open to its deadline. Idempotent.
    Raises RoundClosed when the round was closed while the bytes were on their way: they are not part of it,
    and the budget stays spent.
    """
    round_ = lock_round(session, sent.round_id)
    run = session.get_one(Run, round_.run_id)
    row = _own_update(session, principal, sent, base=buffered.base_of(session, run, round_, sent.base))
    if row is None:
        raise NotFound(_("this update was never announced"))
    if row.state is not UpdateState.RECEIVING:
        return row
    lifecycle.hold_open(session, sent.round_id)
    _require_standing(session, principal)
    if row.round_id != sent.round_id:
        raise UpdateConflict(_("the update was announced for another round meanwhile"))
    row.state = UpdateState.RECEIVED
    row.blob_sha256, row.size_bytes = sent.sha256, sent.size_bytes
    row.organisation_id = principal.organisation_id
    row.received_at = now()
    session.flush()
    suspicions.note_copies(session, principal, row, round_=round_)
    _note_accepted(session, principal, round_, run, row)
    if not seals_at_deadline(run.manifest):
        lifecycle.seal_if_complete(session, sent.round_id, actor=principal.actor, vault=vault)
    return row


def _note_accepted(session: Session, principal: Principal, round_: Round, run: Run, row: Update) -> None:
    """Of a secret cohort no entry is made: that there is one would tell that the client takes part.

    What is not noised yet is known by its digest to the operator alone.
    """
    if round_.cohort_secret:
        return
    digest: dict[str, Detail] = {"sha256": row.blob_sha256}
    is_noised = run.manifest["privacy"]["trust"] == "local"
    record(
        session,
        action=Action.UPDATE_ACCEPTED,
        actor=principal.actor,
        organisation_id=principal.organisation_id,
        subject=f"update:{row.id}",
        details={"round_id": str(round_.id), "size_bytes": row.size_bytes} | (digest if is_noised else {}),
        concealed=None if is_noised else digest,
    )


def _require_standing(session: Session, principal: Principal) -> None:
    """Refuse the bytes of a client that was switched off while they were on their way."""
    client = session.get_one(Client, principal.id, with_for_update={"read": True}, populate_existing=True)
    require_active(client)
    if client.state is ClientState.SUSPENDED:
        raise Suspended(_("this training client is suspended"))


def update_for(session: Session, principal: Principal, *, round_id: UUID, update_id: UUID) -> Update:
    """One update that the caller may see; raises NotFound. Of a secret cohort a client sees its own only."""
    statement = sa.select(Update).where(Update.id == update_id, Update.round_id == round_id)
    if scope_of(principal, "updates:read") is Scope.OWN:
        statement = statement.where(Update.client_id == principal.id)
    else:
        visible = runs(principal, "updates:read").with_only_columns(Run.id)
        statement = statement.join(Round, Round.id == Update.round_id).where(Round.run_id.in_(visible))
        statement = statement.where(Round.cohort_secret.is_(False))
    row = session.scalar(statement)
    if row is None:
        raise NotFound(_("there is no such update"))
    return row


def entry_of(session: Session, update: Update) -> UUID | None:
    """The entry of an update in the audit log, if it has one."""
    actor = f"client:{update.client_id}"
    return audit.entry_of(session, action=Action.UPDATE_ACCEPTED, subject=f"update:{update.id}", actor=actor)


def account_of(session: Session, update: Update) -> AccountView | None:
    """The account that paid for an update; None where the run uses no privacy budget."""
    run = session.scalars(
        sa.select(Run).join(Round, Round.run_id == Run.id).where(Round.id == update.round_id)
    ).one()
    return account_of_client(session, update.client_id) if is_charged(run.manifest) else None
