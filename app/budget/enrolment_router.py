"""POST /clients: where identity and budget meet."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from fastapi import APIRouter

from app.budget.enrolment import Enrolled, enrol
from app.core.strict import StrictModel
from app.http.deps import SessionDep, public
from app.http.limits import limited
from app.http.routes import ThreadedRoute
from app.http.state import VaultDep
from app.identity.capability import AssessedCapability
from app.identity.enrolments import Application
from app.identity.schemas import ClientIn, decode

router = APIRouter(tags=["clients"], route_class=ThreadedRoute)


class GrantedBudget(StrictModel):
    """The budget of the client's data set, as the server mirrors it. The client's own ledger decides."""

    kind: Literal["basic", "renyi"]
    unit: Literal["example", "person", "client"]
    population: str
    epsilon: float
    delta: float
    order: float | None


class EnrolledView(StrictModel):
    """A new training client."""

    client_id: UUID
    organisation_id: UUID
    region: str
    capability: AssessedCapability
    account_id: UUID
    budget: GrantedBudget


@router.post(
    "/clients",
    status_code=201,
    dependencies=[public("its enrolment token is its credential"), limited("clients", per_minute=60)],
)
def create_client(body: ClientIn, session: SessionDep, vault: VaultDep) -> EnrolledView:
    """Become a training client: an enrolment token, and proof of possession of an Ed25519 key."""
    application = Application(
        token=body.enrolment_token,
        name=body.name,
        public_key=decode(body.public_key),
        proof=decode(body.proof),
        capability=body.capability,
    )
    return _view(enrol(session, vault, application, population=body.population))


def _view(enrolled: Enrolled) -> EnrolledView:
    client, account = enrolled.client, enrolled.account
    return EnrolledView(
        client_id=client.id,
        organisation_id=client.organisation_id,
        region=client.region,
        capability=AssessedCapability.model_validate(client.capability),
        account_id=account.id,
        budget=GrantedBudget.model_validate(
            {
                "kind": account.kind,
                "unit": account.unit,
                "population": account.population,
                "epsilon": account.epsilon,
                "delta": account.delta,
                "order": account.order,
            }
        ),
    )
