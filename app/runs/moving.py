"""Moving a training client to another organisation: only one that has taken part in nothing yet."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget.moving import move_account
from app.core.db import act_as
from app.core.errors import Conflict, NotFound
from app.core.i18n import _
from app.identity.clients import change_organisation
from app.identity.models import Client, Organisation
from app.identity.permissions import scope_of
from app.identity.roles import Principal
from app.runs.models import RunClient


class ClientInRuns(Conflict):
    """The client is part of a run of its organisation."""

    code, title = "client_in_runs", _("Client is part of a run")
    meaning = _("The client is listed in a run of its organisation, whose plan and record name it.")
    remedy = _("Revoke the client, and enrol the machine anew at the other organisation.")


def move_client(session: Session, principal: Principal, client_id: UUID, *, organisation_id: UUID) -> Client:
    """Move an unused client with its unused account; its running tokens end.

    Raises NotFound, ClientInRuns, BudgetStays and, of the other organisation's accounts, PopulationTaken.
    """
    scope_of(principal, "clients:move")
    row = session.get(Client, client_id, with_for_update=True, populate_existing=True)
    if row is None or session.get(Organisation, organisation_id) is None:
        raise NotFound(_("there is no such client or organisation"))
    if row.organisation_id == organisation_id:
        return row
    if session.scalar(sa.select(RunClient.run_id).where(RunClient.client_id == client_id).limit(1)):
        raise ClientInRuns(_("the client is part of a run"))
    act_as(session, principal.actor)
    move_account(session, client_id, organisation_id=organisation_id, actor=principal.actor)
    change_organisation(session, row, organisation_id, actor=principal.actor)
    return row
