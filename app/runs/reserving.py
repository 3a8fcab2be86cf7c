"""Setting aside what a whole run costs, on the account of each of its clients; all of them or none."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.budget import ledger
from app.budget.errors import BudgetExceeded
from app.budget.queries import accounts_of_clients
from app.runs.charges import event_of, reservation, run_ref
from app.runs.models import Run
from app.runs.queries import client_ids_of


def reserve_for_all(session: Session, run: Run, *, actor: str) -> bool:
    """Reserve for every client, in the order of accounts so that two runs never wait for each other.

    False, and nothing reserved, when one account does not cover it or is gone.
    """
    client_ids = client_ids_of(session, run.id)
    accounts = accounts_of_clients(session, client_ids)
    if len(accounts) != len(client_ids):
        return False
    event = event_of(run)
    try:
        with session.begin_nested():
            for account in sorted(accounts.values(), key=lambda account: account.id):
                charge = reservation(run, account)
                ledger.reserve(
                    session,
                    account.id,
                    ref=run_ref(run.id),
                    amount=charge.amount,
                    delta_amount=charge.delta_amount,
                    event=event,
                    actor=actor,
                )
    except BudgetExceeded:
        return False
    return True
