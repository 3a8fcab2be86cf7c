"""One reading of a plan's terms, whoever prices them: the price job, a client, the daily check."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from app.core.canonical import canonical_bytes
from app.runs.charges import event_of
from app.runs.manifest import Manifest
from app.runs.models import Run
from client import pricing
from client.wire import FrozenManifest
from engines.privacy.accounting import CappedPoisson, GaussianRun, Relation
from engines.privacy.schedule import schedule_of
from tests.builders import tiny_manifest
from tests.central import central_manifest
from workers.handlers import price, recheck

PERSON: dict[str, Any] = {"unit": "person", "person": {"id_field": "a", "records_cap": 2, "silos": 3}}
MOVING: dict[str, Any] = {"adaptive_clip": {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 20.0}}
SEATED: dict[str, Any] = {
    "audit": {"canaries": 100, "commitment": "c" * 64},
    "cohort": {"kind": "poisson", "rate": 0.5, "cap": 80, "n_max": 6},
}
BUFFERED: dict[str, Any] = {"buffered": {"participations": 3, "staleness": 1}}


def local(**privacy: Any) -> dict[str, Any]:
    return tiny_manifest(privacy={"noise_multiplier": 1.5} | privacy)


def central(**privacy: Any) -> dict[str, Any]:
    return central_manifest(noise_multiplier=1.5, **privacy)


def meaning(rate: float, steps: int, *, cut: tuple[int, int] | None = None, **other: Any) -> GaussianRun:
    capped = None if cut is None else CappedPoisson(population=cut[0], cap=cut[1])
    terms = {"noise_multiplier": 1.5, "relation": Relation.ZERO_OUT} | other
    return GaussianRun(sampling_rate=rate, steps=steps, capped=capped, **terms)


PLANS: dict[str, tuple[dict[str, Any], GaussianRun]] = {
    "records": (local(), meaning(0.1, 4)),
    "all of them, replaced": (
        local(examples={"kind": "all"}, relation="replace_one"),
        meaning(1.0, 4, relation=Relation.REPLACE_ONE),
    ),
    "persons": (local(**PERSON), meaning(0.1, 4)),
    "buffers": (local() | {"rounds": 5} | BUFFERED, meaning(0.1, 6)),
    "canaries alone": (local(audit=SEATED["audit"]), meaning(0.1, 4)),
    "clients, drawn": (central(rounds=3), meaning(0.5, 3, cut=(6, 6))),
    "clients, all": (central(cohort={"kind": "everyone"}), meaning(1.0, 2)),
    "a moving clip norm": (central(**MOVING), meaning(0.5, 2, cut=(6, 6))),
    "clients and canaries": (central(**SEATED), meaning(0.5, 2, cut=(106, 80))),
}


@pytest.mark.parametrize(("document", "meant"), PLANS.values(), ids=PLANS)
def test_price_job_client_ledger_and_daily_check_mean_the_same_schedule(
    document: dict[str, Any], meant: GaussianRun
) -> None:
    manifest = Manifest.model_validate(document)
    assert price._schedule(manifest, delta=1e-5) == meant
    frozen = manifest.as_json()
    assert pricing._schedule(FrozenManifest(canonical_bytes(frozen)).manifest) == meant
    event = event_of(Run(id=uuid4(), manifest=frozen))
    assert schedule_of({name: event[name] for name in recheck._PRICED_BY}) == meant


OF_CLIENTS = {"trust": "central", "unit": "client"}


@pytest.mark.parametrize(
    "changed",
    [
        {"trust": "distributed"},
        {"trust": "none"},
        {"trust": ["local"]},
        {"trust": "central"},  # of records
        {"unit": "client"},  # by the sampling of records
        {"unit": None},
        OF_CLIENTS | {"cohort": {"kind": "optimized"}},
        OF_CLIENTS | {"cohort": {"kind": "poisson", "rate": 0.5, "cap": 7, "n_max": 6}},
        OF_CLIENTS | {"canaries": -1},
        OF_CLIENTS | {"canaries": "9"},
        {"examples": {"kind": "shuffled"}},
        {"examples": {"kind": "poisson", "rate": "0.1"}},
        {"examples": {"kind": "poisson", "rate": True}},
        {"examples": None},
        {"relation": "twice"},
        {"noise_multiplier": None},
        {"noise_multiplier": "1.5"},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": 10**400},
        {"steps": 0},
        {"steps": 4.0},
    ],
)
def test_terms_that_have_no_price_or_are_no_numbers_are_refused(changed: dict[str, Any]) -> None:
    terms = local()["privacy"] | {"steps": 4}
    assert schedule_of(terms) == meaning(0.1, 4)
    with pytest.raises(ValueError):  # noqa: PT011  the texts differ
        schedule_of(terms | changed)
