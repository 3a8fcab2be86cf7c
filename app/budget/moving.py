"""What becomes of a data set's account when its training client goes to another organisation.

An account of which anything was spent or is reserved stays where it is, and so does its client: what was
spent belongs to the data set, and a fresh account elsewhere would forget it.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget import ledger
from app.budget.errors import BudgetStays
from app.budget.models import Account
from app.core.i18n import _


def move_account(session: Session, client_id: UUID, *, organisation_id: UUID, actor: str) -> None:
    """Open the client's account at another organisation under the same terms, if the present one is unused.

    The unused account stays without a client. Raises BudgetStays, and what opening an account raises.
    """
    account = session.scalar(
        sa.select(Account)
        .where(Account.client_id == client_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if account is None:
        return
    if account.spent or account.reserved or account.delta_spent or account.delta_reserved:
        raise BudgetStays(_("the data set of this client has spent or reserved budget"))
    account.client_id = None
    session.flush()
    ledger.open_account(
        session,
        organisation_id=organisation_id,
        client_id=client_id,
        population=account.population,
        kind=account.kind,
        epsilon=account.epsilon,
        delta=account.delta,
        order=account.order,
        unit=account.unit,
        actor=actor,
    )
