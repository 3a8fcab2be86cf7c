"""Giving a run's reservation back to a client that signed that it sent nothing for it.

The only way by which reserved budget returns: the run is over, none of its rounds can take an update any
more, and no upload of this client ever began, not even one that broke.
"""

from __future__ import annotations

import base64
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.budget import ledger
from app.budget.queries import AccountView, account_of_client, account_view, is_voided
from app.core.errors import Conflict, Invalid
from app.core.i18n import _
from app.identity.clients import signed_by_client
from app.identity.models import Client
from app.identity.roles import Principal
from app.rounds.models import Round
from app.rounds.queries import rounds_of
from app.rounds.states import FINAL
from app.runs.charges import is_charged, run_ref
from app.runs.queries import lock_run, run_for
from app.runs.states import RunState
from app.updates.models import Update


class RunNotOver(Conflict):
    """The run may still ask the client for an update."""

    code, title = "run_not_over", _("The run is not over")
    meaning = _("Reserved budget is given back only when no round of the run can take an update any more.")
    remedy = _("Wait until the run is finished or aborted.")


class SomethingWasSent(Conflict):
    """An upload of the client began."""

    code, title = "something_was_sent", _("An upload of this run began")
    meaning = _("Once the first byte of an update may have left the client, its budget stays charged.")
    remedy = _("Nothing can be given back for this run.")


class SignatureInvalid(Invalid):
    """The statement is not the expected one, or not signed by the client's key."""

    code, title = "signature_invalid", _("The signature does not hold")
    meaning = _("The statement has to be the expected text, signed with the client's enrolled key.")
    remedy = _("Sign the statement that the documentation names, with the key of the enrolment.")


def statement_of(client_id: UUID, run_id: UUID) -> str:
    """What the client signs."""
    return f"nothing was sent for run {run_id} by client {client_id} and nothing will be"


def disclaim(
    session: Session, principal: Principal, run_id: UUID, *, statement: str, signature: str
) -> AccountView:
    """Void the client's reservation for a run that it sent nothing for; returns the account."""
    run_for(session, principal, run_id, "updates:create")
    run = lock_run(session, run_id)
    if not is_charged(run.manifest) or run.started_at is None:
        raise Conflict(_("nothing was reserved for this run"))
    rounds_are_over = all(round_.state in FINAL for round_ in rounds_of(session, run_id))
    if run.state not in {RunState.FINISHED, RunState.ABORTED} or not rounds_are_over:
        raise RunNotOver(_("the run is {state}"), state=str(run.state))
    began = sa.select(Update.id).join(Round, Round.id == Update.round_id)
    if session.scalar(began.where(Round.run_id == run_id, Update.client_id == principal.id).limit(1)):
        raise SomethingWasSent(_("an upload of this client began in this run"))
    client = session.get_one(Client, principal.id)
    _verify(session, client, run_id, statement=statement, signature=signature)
    account = account_of_client(session, principal.id)
    ref = f"disclaimer:{run_id}"
    if not is_voided(session, account.id, ref):
        _note(session, principal, run_id, statement=statement, signature=signature)
    ledger.void(
        session,
        account.id,
        ref=ref,
        reserve_ref=run_ref(run_id),
        event={"statement": statement, "signature": signature},
        actor=principal.actor,
    )
    return account_view(session, account.id)


def _note(session: Session, principal: Principal, run_id: UUID, *, statement: str, signature: str) -> None:
    record(
        session,
        action=Action.UPDATE_DISCLAIMED,
        actor=principal.actor,
        organisation_id=principal.organisation_id,
        subject=f"run:{run_id}",
        details={"statement": statement, "signature": signature},
    )


def _verify(session: Session, client: Client, run_id: UUID, *, statement: str, signature: str) -> None:
    if statement != statement_of(client.id, run_id):
        raise SignatureInvalid(_("the statement must read: {text}"), text=statement_of(client.id, run_id))
    raw = base64.urlsafe_b64decode(signature.rstrip("=") + "==")
    if not signed_by_client(session, client, raw, statement.encode()):
        raise SignatureInvalid(_("the statement is not signed with the client's key"))
