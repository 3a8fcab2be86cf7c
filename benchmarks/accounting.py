"""One round charged to 10,000 accounts, beside recomputing each account's epsilon; calibration; tightness.

A run is priced once. A round then costs each account an integer share of that price, and a comparison with
its ceiling; the peer is dp_accounting's Renyi accountant, asked again for every account, measured on a few
and scaled. The rows that are committed go through the ledger's own code into the embedded PostgreSQL.
`python -m benchmarks.accounting`.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import dp_accounting
from sqlalchemy.orm import Session

from app.budget import arithmetic, bulk
from app.core.db import Database
from benchmarks.report import goal, report
from cli.embedded.stack import running_stack
from engines.privacy.accounting import (
    CappedPoisson,
    GaussianRun,
    Relation,
    calibrate_noise_multiplier,
    epsilon_by_round,
    epsilon_pld,
    epsilon_rdp,
    rdp_at_order,
)
from engines.privacy.loss_library import loss_of_step, watched_library
from tests.builders import build_account, build_client

ACCOUNTS, ROUNDS, REPEATS, RECOMPUTED = 10_000, 30, 7, 8
DELTA, ORDER, CEILING = 1e-5, 4.0, 12.0
PLAN = GaussianRun(noise_multiplier=1.1292, sampling_rate=0.25, steps=ROUNDS, relation=Relation.ZERO_OUT)
"""Not cut, so that accounts by order have a price too."""

TIGHTNESS = {  # noise multiplier, rate, steps, delta
    "A": (1.0, 0.01, 1000, 1e-5),
    "B": (1.0, 0.1, 100, 1e-5),
    "G": (0.8, 0.05, 200, 1e-6),
    "J": (1.0, 0.01, 1, 1e-5),
    "demo": (0.9345, 0.1231, 64, 1e-5),
    "clients": (1.1292, 0.25, 30, 1e-5),
}


@dataclasses.dataclass(slots=True)
class Held:
    """One account's sums in the ledger's integers, and how many rounds it has paid."""

    parts: list[int]
    paid: int
    spent: int
    reserved: int
    ceiling: int


def shares_of_run() -> tuple[list[int], list[int]]:
    """What each round costs a `basic` account and one of kind `renyi`, as the run's price says."""
    by_round = [arithmetic.cost(value) for value in epsilon_by_round(PLAN, rounds=ROUNDS, delta=DELTA)]
    total = arithmetic.cost(rdp_at_order([PLAN], order=ORDER))
    each = -(-total // ROUNDS)
    return (
        arithmetic.shares(by_round[-1], by_round),
        arithmetic.shares(total, [each * number for number in range(1, ROUNDS + 1)]),
    )


def accounts(shares: tuple[list[int], list[int]]) -> list[Held]:
    """Make accounts of both kinds in turn, each with this run reserved and some of its rounds paid."""
    ceilings = (arithmetic.ceiling(CEILING), arithmetic.renyi_ceiling(CEILING, DELTA, order=ORDER))
    made = []
    for number in range(ACCOUNTS):
        parts, ceiling = shares[number % 2], ceilings[number % 2]
        paid = number % (ROUNDS - REPEATS)
        spent = sum(parts[:paid])
        made.append(Held(parts=parts, paid=paid, spent=spent, reserved=sum(parts) - spent, ceiling=ceiling))
    return made


def charge_round(held: list[Held]) -> int:
    """Move each account's next share from reserved to spent, under its ceiling; returns how many paid."""
    charged = 0
    for account in held:
        part = account.parts[account.paid]
        spent, reserved = account.spent + part, account.reserved - part
        if reserved < 0 or spent + reserved > account.ceiling:
            raise SystemExit("an account was charged over its ceiling")
        account.spent, account.reserved = spent, reserved
        account.paid += 1
        charged += 1
    return charged


def arithmetic_ms(shares: tuple[list[int], list[int]]) -> float:
    """Milliseconds to charge one round to all accounts, in memory; the median of several rounds."""
    held = accounts(shares)
    return 1e3 * statistics.median(_seconds(lambda: charge_round(held)) for _ in range(REPEATS))


def recomputing_ms() -> tuple[float, float]:
    """Milliseconds to ask dp_accounting's RDP for all accounts: a few are asked, and the time is scaled.

    First as its accountant is used; then with one step's divergences kept, which only converts their sums.
    """
    step = dp_accounting.PoissonSampledDpEvent(
        PLAN.sampling_rate, dp_accounting.GaussianDpEvent(PLAN.noise_multiplier)
    )
    kept = dp_accounting.rdp.RdpAccountant()

    def ask(rounds: int) -> None:
        accountant = dp_accounting.rdp.RdpAccountant()
        accountant.compose(step, rounds)
        accountant.get_epsilon(DELTA)

    def convert(rounds: int) -> None:
        dp_accounting.rdp.compute_epsilon(kept._orders, rounds * kept._rdp, DELTA)

    with watched_library():  # orders that do not converge are left out without a word
        kept.compose(step)
        convert(1)  # imports are not what is compared
        asked = [_seconds(lambda rounds=rounds: ask(rounds)) for rounds in range(1, RECOMPUTED + 1)]  # type: ignore[misc]  # bound now, on purpose
        converted = [_seconds(lambda rounds=rounds: convert(rounds)) for rounds in range(1, 101)]  # type: ignore[misc]  # as above
    return 1e3 * ACCOUNTS * statistics.median(asked), 1e3 * ACCOUNTS * statistics.median(converted)


def committed_ms(database: Database, shares: tuple[list[int], list[int]]) -> float:
    """Milliseconds from begin to commit of one round on all accounts, entries and chains included."""
    groups: tuple[list[UUID], list[UUID]] = ([], [])
    with database.run_tx("benchmark accounts") as session:
        client = build_client(session)
        for number in range(ACCOUNTS):
            order = ORDER if number % 2 else None
            groups[number % 2].append(build_account(session, client, epsilon=CEILING, order=order))
        for ids, parts in zip(groups, shares, strict=True):
            charges = dict.fromkeys(ids, (sum(parts), 0))
            bulk.reserve_run(session, charges=charges, ref="run:1", event=event(), actor="benchmark")

    def spend(number: int) -> None:
        with database.run_tx("benchmark round") as session:
            booked = sum(spend_group(session, *group, number) for group in zip(groups, shares, strict=True))
        if booked != ACCOUNTS:
            raise SystemExit("an account was not charged")

    return 1e3 * statistics.median(_seconds(lambda at=number: spend(at)) for number in range(3))  # type: ignore[misc]  # bound now, on purpose


def spend_group(session: Session, ids: list[UUID], parts: list[int], number: int) -> int:
    """Charge one round to accounts of one kind, through the ledger."""
    return bulk.spend_round(
        session,
        account_ids=ids,
        ref=f"round:{number}",
        reserve_ref="run:1",
        parts=[(part, 0) for part in parts],
        event=event(),
        actor="benchmark",
    )


def event() -> dict[str, Any]:
    """The mechanism's parameters, as an entry keeps them."""
    return dataclasses.asdict(PLAN) | {"delta": DELTA}


def calibrations() -> list[dict[str, Any]]:
    """Seconds to find the noise of the demo, and that of its clients with the cut of their cohort."""
    cut = CappedPoisson(population=202, cap=82)
    plans: list[tuple[str, float, int, CappedPoisson | None]] = [
        ("records, q=.1231, 64 steps", 0.1231, 64, None),
        ("clients, q=.25, 30 rounds, cap 82 of 202", 0.25, 30, cut),
    ]
    rows = []
    for name, rate, steps, capped in plans:
        loss_of_step.cache_clear()
        began = time.perf_counter()
        z = calibrate_noise_multiplier(
            epsilon=8.0,
            delta=DELTA,
            sampling_rate=rate,
            steps=steps,
            relation=Relation.ZERO_OUT,
            capped=capped,
        )
        seconds = round(time.perf_counter() - began, 2)
        rows.append({"calibration": name, "noise_multiplier": z, "seconds": seconds})
    return rows


def tightness() -> list[dict[str, Any]]:
    """How much of the claim's epsilon the Renyi accountant adds, schedule by schedule."""
    rows = []
    for name, (z, rate, steps, delta) in TIGHTNESS.items():
        runs = [GaussianRun(noise_multiplier=z, sampling_rate=rate, steps=steps, relation=Relation.ZERO_OUT)]
        pld, rdp = epsilon_pld(runs, delta=delta), epsilon_rdp(runs, delta=delta)
        rows.append(
            {
                "schedule": name,
                "epsilon_pld": round(pld, 6),
                "epsilon_rdp": round(rdp, 6),
                "rdp_over_pld": round(rdp / pld, 3),
            }
        )
    return rows


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure in memory, then on rows of a database that is started for it, and report."""
    shares = shares_of_run()
    ours_ms = arithmetic_ms(shares)
    peer_ms, kept_ms = recomputing_ms()
    rows: list[dict[str, Any]] = [
        {
            "accounts": ACCOUNTS,
            "charging_ms": round(ours_ms, 2),
            "recomputing_ms": round(peer_ms),
            "recomputed": f"{RECOMPUTED} of {ACCOUNTS}, scaled",
            "converting_kept_divergences_ms": round(kept_ms),
        }
    ]
    rows += calibrations() + tightness()
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
        database = Database(stack.database_url, pool_size=1)
        database_ms = committed_ms(database, shares)
        database.dispose()
    rows.append({"accounts": ACCOUNTS, "entries": ACCOUNTS, "committed_ms": round(database_ms)})
    report(
        "accounting",
        rows,
        [
            goal("round_10000_accounts_ms", round(ours_ms, 2), at_most=50.0),
            goal("round_10000_accounts_speedup", round(peer_ms / ours_ms, 1), at_least=100.0),
            goal("round_10000_accounts_db_ms", round(database_ms), at_most=3000.0),
        ],
    )


if __name__ == "__main__":
    main()
