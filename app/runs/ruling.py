"""What the data rules of the organisations whose clients are in a run say about it.

Asked after the roles: when a run starts, and again before each further round, by the rules in force at that
time. All clients of the run count, whoever was or will be drawn, so that nothing here tells of a cohort.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.budget import arithmetic
from app.budget.arithmetic import AmountInvalid
from app.budget.periods import engaged_since
from app.budget.queries import AccountView, accounts_of_clients
from app.core.clock import now
from app.core.errors import Forbidden, NotFound
from app.core.i18n import _
from app.identity.models import Client
from app.identity.roles import Principal
from app.policies.models import DataRules
from app.policies.queries import in_force, may_read, require_organisation
from app.policies.rules import Asked, Denial, Rules, denials
from app.rounds.queries import rounds_of
from app.runs.charges import PriceMissing, reservation, run_ref
from app.runs.models import Run, RunClient

DENIED = (
    "data_rule_denied",
    _("A data rule of at least one organisation whose data the run uses denies it."),
)
"""Says nothing of whose rule it is: clients may be another organisation's."""


class DataRuleDenied(Forbidden):
    """The caller's role allows it, and a data holder's rule does not."""

    code, title = DENIED[0], _("A data rule denies this")
    meaning = _(
        "Your role allows it. After the roles, the rules of each organisation whose clients are in the run "
        "decide, and at least one of them denies. `denials` names those that you may see."
    )
    remedy = _(
        "Plan the run within the rules, or ask the organisations' data stewards. A run that was refused at "
        "its start has to be cloned; a paused one goes on with `resume` once the rules allow it."
    )


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one organisation's rules say about a run."""

    organisation_id: UUID
    version: int | None
    """Of the rules in force; None where they were only proposed, or there are none."""
    sha256: str | None
    denials: list[Denial]

    @property
    def decision(self) -> str:
        """`allow` or `deny`."""
        return "deny" if self.denials else "allow"


def decide(session: Session, run: Run, *, region: str | None, actor: str) -> bool:
    """Judge a run that is about to use data, and note each organisation's decision; True: it is denied.

    `region` is that of this process, which computes and stores; None where its
    operator named none, and denied where it counts.
    """
    found = rulings(session, run, region=region)
    number = len(rounds_of(session, run.id)) + 1
    for ruling in found:
        record(
            session,
            action=Action.DATA_RULES_DECIDED,
            actor=actor,
            organisation_id=ruling.organisation_id,
            subject=f"run:{run.id}",
            details={
                "decision": ruling.decision,
                "version": ruling.version,
                "rules_sha256": ruling.sha256,
                "denied_by": [denial.rule.value for denial in ruling.denials],
                "round": number,
            },
        )
    return any(ruling.denials for ruling in found)


def rulings(session: Session, run: Run, *, region: str | None) -> list[Ruling]:
    """What the rules in force say; organisations without rules have no say."""
    holders = sa.select(Client.organisation_id).join(RunClient).where(RunClient.run_id == run.id).distinct()
    return [_ruling(session, run, row, region=region) for row in in_force(session, session.scalars(holders))]


def _ruling(session: Session, run: Run, row: DataRules, *, region: str | None) -> Ruling:
    rules = Rules.model_validate(row.rules)
    judged = _judged(session, run, row.organisation_id, rules=rules, region=region)
    return Ruling(row.organisation_id, row.version, row.sha256, judged)


def try_out(
    session: Session,
    principal: Principal,
    organisation_id: UUID,
    *,
    run_id: UUID,
    rules: Rules | None,
    region: str | None,
) -> Ruling:
    """What an organisation's rules, or proposed ones, would say about a run that has clients of it.

    Whoever answers for the data may ask about any such run, whosever it is. Raises NotFound for others.
    """
    require_organisation(session, principal, organisation_id, "data_rules:try")
    run = session.get(Run, run_id)
    if run is None or not _clients_of(session, run, organisation_id):
        raise NotFound(_("there is no such run with clients of this organisation"))
    row = None if rules is not None else next(iter(in_force(session, [organisation_id])), None)
    if row is not None:
        return _ruling(session, run, row, region=region)
    judged = _judged(session, run, organisation_id, rules=rules or Rules(), region=region)
    return Ruling(organisation_id, None, None, judged)


def refusal(session: Session, principal: Principal, run: Run, *, region: str | None) -> DataRuleDenied:
    """Why a run was denied, as far as the caller may see: by rules that it may read.

    Judged again, which notes nothing.
    """
    seen = [
        {"organisation_id": str(ruling.organisation_id), "version": ruling.version} | _shown(denial)
        for ruling in rulings(session, run, region=region)
        if may_read(principal, ruling.organisation_id)
        for denial in ruling.denials
    ]
    return DataRuleDenied(DENIED[1], denials=seen)


def _shown(denial: Denial) -> dict[str, Any]:
    return asdict(denial) | {"rule": denial.rule.value}


def _clients_of(session: Session, run: Run, organisation_id: UUID) -> Sequence[Client]:
    return session.scalars(
        sa.select(Client)
        .join(RunClient)
        .where(RunClient.run_id == run.id, Client.organisation_id == organisation_id)
    ).all()


def _judged(
    session: Session, run: Run, organisation_id: UUID, *, rules: Rules, region: str | None
) -> list[Denial]:
    clients = _clients_of(session, run, organisation_id)
    period, use = rules.epsilon_per_period, run.manifest.get("use") or {}
    days = None if period is None else period.days
    asked = Asked(
        purpose=use.get("purpose"),
        data_categories=use.get("data_categories") or [None],
        jurisdictions=[client.jurisdiction for client in clients],
        processing_region=region,
        trust=run.manifest["privacy"]["trust"],
        epsilon_in_period=None if days is None else _epsilon(session, run, clients, days=days),
        smallest_cohort=_least_cohort(run.manifest),
    )
    return denials(rules, asked)


def _epsilon(session: Session, run: Run, clients: Sequence[Client], *, days: int) -> Decimal | None:
    """The most that any of these clients' accounts would have paid within the period, with this run's price.

    An account stands for one population, so accounts are compared and never added. None where the run has no
    price for one of them, as one with trust `none` has for nobody.
    """
    accounts = accounts_of_clients(session, [client.id for client in clients])
    if len(accounts) != len(clients):
        return None
    ids = [account.id for account in accounts.values()]
    since = now() - timedelta(days=days)
    engaged = engaged_since(session, ids, since=since, beside=run_ref(run.id))
    try:
        return max(
            account.implied_epsilon(engaged.get(account.id, 0) + _price(run, account))
            for account in accounts.values()
        )
    except (PriceMissing, AmountInvalid):
        return None


def _price(run: Run, account: AccountView) -> int:
    """What the run takes from an account; before it is priced, the epsilon that it is to stay within."""
    planned: float | None = run.manifest["privacy"]["epsilon"]
    if run.price is None and planned is not None and account.order is None:
        return arithmetic.cost(planned)
    return reservation(run, account).amount


def _least_cohort(manifest: dict[str, Any]) -> int:
    """With how few clients a round may close. A secret cohort may be empty: there its mean stands for it."""
    privacy, cohort = manifest["privacy"], manifest["privacy"]["cohort"]
    if privacy["trust"] == "central" and cohort["kind"] == "poisson":
        # As it is written: the float nearest to 0.29 is below it, and 100 times that is 28.99...
        return math.floor(Decimal(repr(float(cohort["rate"]))) * int(cohort["n_max"]))
    return int(manifest["quorum"]["min_updates"])
