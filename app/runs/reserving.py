"""What a run takes from its clients' accounts: the whole schedule at its start, then a round at a time.

Always from all of them or from none, in a number of statements that does not grow with the clients.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from sqlalchemy.orm import Session

from app.budget import bulk, violations
from app.budget.errors import BudgetExceeded
from app.budget.queries import AccountView, accounts_of_clients, accounts_reserving
from app.budget.violations import ViolationKind
from app.rounds.models import Round
from app.runs.charges import event_of, require_covered, reservation, round_ref, run_ref, schedule
from app.runs.models import Run
from app.runs.queries import client_ids_of


def reserve_for_all(session: Session, run: Run, *, actor: str) -> bool:
    """Reserve for every client. False, and nothing reserved, when an account cannot pay or is gone.

    Raises UnitTooFine and RelationTooWeak: a draft may be older than what its accounts pay for now.
    """
    client_ids = client_ids_of(session, run.id)
    accounts = accounts_of_clients(session, client_ids)
    if len(accounts) != len(client_ids):
        return False
    for client_id, account in accounts.items():
        require_covered(run.manifest, account, client_id=str(client_id))
    charges = {account.id: reservation(run, account) for account in accounts.values()}
    try:
        with session.begin_nested():
            bulk.reserve_run(
                session,
                charges={id_: (charge.amount, charge.delta_amount) for id_, charge in charges.items()},
                ref=run_ref(run.id),
                event=event_of(run),
                actor=actor,
            )
    except BudgetExceeded:
        return False
    return True


def spend_for_all(session: Session, run: Run, round_: Round, *, actor: str) -> None:
    """Charge a round to every account that the run reserved on, whoever was in the round's cohort.

    That somebody was not drawn is worth nothing to its account: the price has the chance of it already, and
    an account that only members of the cohort pay from would show who they were. Charged again, nothing.
    """
    by_terms: dict[tuple[str, float | None], list[AccountView]] = defaultdict(list)
    for account in accounts_reserving(session, run_ref(run.id)):
        by_terms[account.kind, account.order].append(account)
    pending: list[tuple[list[UUID], list[tuple[int, int]]]] = []
    for accounts in by_terms.values():
        parts = [(charge.amount, charge.delta_amount) for charge in schedule(run, accounts[0])]
        pending.append(([account.id for account in accounts], parts))
    for account_ids, parts in sorted(pending):
        bulk.spend_round(
            session,
            account_ids=account_ids,
            ref=round_ref(round_.id),
            reserve_ref=run_ref(run.id),
            parts=parts,
            event=event_of(run) | {"round": round_.number},
            actor=actor,
        )


def note_ceiling_hit(session: Session, run: Run) -> None:
    """Record that the run was refused for want of budget; not whose: that is nobody else's business."""
    price = run.price or {}
    violations.record(
        session,
        ViolationKind.CEILING_HIT,
        organisation_id=run.organisation_id,
        run_id=run.id,
        detail={"epsilon": price.get("epsilon"), "delta": price.get("delta")},
    )
