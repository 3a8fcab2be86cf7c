"""Whoever prices a run with canaries in its rounds counts their places: one mechanism, said in one way."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from app.budget import audits
from app.core.canonical import canonical_bytes
from app.runs.charges import event_of
from app.runs.manifest import Manifest
from app.runs.models import Run
from client import pricing
from client.wire import FrozenManifest
from engines.privacy.accounting import CappedPoisson
from engines.privacy.audit_one_shot import Statistic
from engines.privacy.schedule import schedule_of
from tests.builders import tiny_manifest
from tests.central import CANARIES, CAP, CLIENTS, SEATED, central_manifest
from workers.handlers import price

ALL = CappedPoisson(population=CLIENTS + CANARIES, cap=CAP)


def frozen(commitment: str | None = "c" * 64, **privacy: Any) -> dict[str, Any]:
    audit = {"canaries": CANARIES, "commitment": commitment}
    plan = SEATED | {"audit": audit, "noise_multiplier": 1.5, "epsilon": 3.9} | privacy
    return Manifest.model_validate(central_manifest(**plan)).as_json()


def run_of(manifest: dict[str, Any]) -> Run:
    return Run(id=uuid4(), manifest=manifest, manifest_sha256="a" * 64, price={"accountant": "x"})


def test_the_price_job_prices_the_places_of_clients_and_canaries() -> None:
    assert price._schedule(Manifest.model_validate(frozen(None)), delta=1e-5).capped == ALL
    everyone = Manifest.model_validate(frozen(None, cohort={"kind": "everyone"}, noise_multiplier=4.0))
    assert price.price_of(everyone, orders=())["canaries"] == CANARIES


def test_without_a_commitment_a_started_run_has_no_canaries_and_no_price_of_their_places() -> None:
    older = frozen(None, cohort={"kind": "poisson", "rate": 0.5, "cap": CLIENTS, "n_max": CLIENTS})
    assert schedule_of(event_of(run_of(older))).capped == CappedPoisson(population=CLIENTS, cap=CLIENTS)
    client = FrozenManifest(canonical_bytes(older)).manifest
    assert pricing._schedule(client).capped == CappedPoisson(population=CLIENTS, cap=CLIENTS)


def test_under_local_canaries_take_no_place() -> None:
    local = tiny_manifest(
        privacy={"audit": {"canaries": 100, "commitment": "c" * 64}, "noise_multiplier": 2.0}
    )
    assert event_of(run_of(local))["canaries"] == 0
    assert FrozenManifest(canonical_bytes(local)).manifest.privacy.canaries == 0


@pytest.mark.parametrize("epsilon", [5.0, 8.0])
def test_a_run_that_claims_more_than_its_canaries_can_refute_is_refused(epsilon: float) -> None:
    """200 canaries reach 3.9, and 1,000 reach 5.4 at delta 1e-5."""
    with pytest.raises(price.Refused) as refused:
        price._require_reach(
            Manifest.model_validate(frozen(None)).privacy, noise_multiplier=1.5, epsilon=epsilon
        )
    assert refused.value.code == "audit_cannot_refute"
    assert ("No audit" in refused.value.reason) is (epsilon > 5.4)


def test_the_gateway_names_the_kinds_of_audit_as_reports_do() -> None:
    assert (audits.SUM, audits.RUN) == (Statistic.FINAL_ITERATE, Statistic.SUM_OF_ROUNDS)
