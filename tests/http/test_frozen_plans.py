"""From a draft to what a client reads: the frozen manifest is one that its holder's policy accepts."""

from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.settings import Settings
from app.identity.roles import Role
from app.runs import service
from app.runs.manifest import EXAMPLE, Manifest
from app.runs.queries import run_for
from app.runs.states import RunState
from client.policy import Policy, judge
from client.pricing import terms_of
from client.wire import FrozenManifest
from tests.builders import tiny_manifest
from tests.client_folders import TERMS
from tests.federation import Federation
from tests.http.accounts import add_caller, client_headers
from workers.handlers.price import price_of

POLICY = Policy.of(**TERMS)
"""As `dpfl client enrol` makes it."""
PAIR = {"quorum": {"min_updates": 2, "max_updates": 2}}
NOISE_ALONE = {"noise_multiplier": 2.0, "epsilon": None}


@pytest.fixture
def federation(session: Session, settings: Settings) -> Federation:
    return Federation(session, settings)


@pytest.mark.parametrize(
    "document",
    [
        EXAMPLE | PAIR,
        EXAMPLE | PAIR | {"privacy": EXAMPLE["privacy"] | NOISE_ALONE},
        tiny_manifest(privacy=NOISE_ALONE, **PAIR),
    ],
    ids=["documented example", "documented example, noise alone", "noise alone"],
)
def test_a_started_plan_is_accepted_and_priced_by_its_client(
    api: TestClient, session: Session, federation: Federation, document: dict[str, Any]
) -> None:
    coordinator = add_caller(session, Role.COORDINATOR, federation.organisation.id)
    body = {"manifest": document, "client_ids": [str(client.id) for client in federation.clients]}
    made = api.post("/v1/runs", json=body, headers=coordinator.headers)
    assert made.status_code == 201, made.text
    path = f"/v1/runs/{made.json()['id']}"
    assert api.post(f"{path}/price", headers=coordinator.headers).status_code == 202
    run = run_for(session, federation.coordinator, made.json()["id"])
    price = price_of(Manifest.model_validate(run.manifest), orders=())
    service.accept_price(
        session, run.id, version=run.version, price=price, start_adapter_sha256="a" * 64, actor="job"
    )
    started = api.post(f"{path}/start", headers=coordinator.headers)
    assert (started.status_code, started.json()["state"]) == (202, RunState.RUNNING), started.text

    own = client_headers(api.app, federation.principal())
    frozen = FrozenManifest(api.get(f"{path}/manifest", headers=own).content)
    frozen.require(started.json()["manifest_sha256"])
    judge(frozen.manifest, POLICY)
    named = frozen.manifest.privacy.epsilon
    assert named is not None
    assert price["epsilon"] <= named <= (document["privacy"]["epsilon"] or price["epsilon"] + 1e-6)
    terms = terms_of(frozen, run_id=str(run.id), client_id="client", server="http://127.0.0.1")
    assert 0 < terms.epsilon <= POLICY.ceiling.epsilon
    assert terms.delta <= POLICY.ceiling.delta
