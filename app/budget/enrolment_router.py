"""Where identity and budget meet: invitations under budget terms, and the clients that take them up."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request

from app.budget.enrolment import Enrolled, enrol, invite
from app.core.networks import read_address, subscriber
from app.core.strict import StrictModel
from app.http.deps import SessionDep, SettingsDep, address_of, public, requires
from app.http.idempotency import IdempotentRoute
from app.http.limits import limited
from app.http.routes import ThreadedRoute
from app.http.state import VaultDep
from app.identity.capability import AssessedCapability
from app.identity.enrolments import Application, check_token
from app.identity.models import Approval, ClientState
from app.identity.roles import Principal
from app.identity.schemas import (
    BudgetTerms,
    ClientIn,
    EnrolmentCheck,
    EnrolmentIn,
    EnrolmentOnce,
    EnrolmentTokenIn,
    EnrolmentView,
    decode,
)

router = APIRouter(tags=["clients"], route_class=ThreadedRoute)
invitations = APIRouter(tags=["clients"], route_class=IdempotentRoute)


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
    state: ClientState
    """`pending`: it gets no token before it is approved."""
    capability: AssessedCapability
    account_id: UUID
    budget: GrantedBudget


@invitations.post("/enrolments", status_code=201)
def create_enrolment(
    body: EnrolmentIn,
    session: SessionDep,
    settings: SettingsDep,
    vault: VaultDep,
    principal: Annotated[Principal, requires("enrolments:create")],
) -> EnrolmentOnce:
    """Invite one training client. The answer is the only place where the token is ever shown."""
    default = (settings.grant_epsilon, settings.grant_delta)
    budget = body.budget or BudgetTerms(epsilon=default[0], delta=default[1])
    made = invite(
        session,
        principal,
        vault,
        organisation_id=body.organisation_id,
        region=body.region,
        budget=budget.model_dump(),
        default=default,
        expires_in_s=body.expires_in_s,
        approval=Approval(body.approval),
        jurisdiction=body.jurisdiction,
    )
    return EnrolmentOnce(**EnrolmentView.model_validate(made.row).model_dump(), token=made.token)


@router.post(
    "/enrolments/check",
    dependencies=[public("its enrolment token is its credential"), limited("checks", per_minute=60)],
)
def check_enrolment(body: EnrolmentTokenIn, session: SessionDep, vault: VaultDep) -> EnrolmentCheck:
    """Say whether an enrolment token would be taken now, without using it."""
    return EnrolmentCheck.model_validate(check_token(session, vault, body.enrolment_token))


@router.post(
    "/clients",
    status_code=201,
    dependencies=[public("its enrolment token is its credential"), limited("clients", per_minute=60)],
)
def create_client(body: ClientIn, request: Request, session: SessionDep, vault: VaultDep) -> EnrolledView:
    """Become a training client: an enrolment token, and proof of possession of an Ed25519 key."""
    address = address_of(request)
    application = Application(
        token=body.enrolment_token,
        name=body.name,
        public_key=decode(body.public_key),
        proof=decode(body.proof),
        capability=body.capability,
        network=None if read_address(address) is None else subscriber(address),
    )
    return _view(enrol(session, vault, application, population=body.population))


def _view(enrolled: Enrolled) -> EnrolledView:
    client, account = enrolled.client, enrolled.account
    return EnrolledView(
        client_id=client.id,
        organisation_id=client.organisation_id,
        region=client.region,
        state=client.state,
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
