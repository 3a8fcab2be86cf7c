"""Rows for tests: each builder flushes one valid object and takes only what the test cares about."""

import secrets
from uuid import UUID

from sqlalchemy.orm import Session

from app.budget import ledger
from app.identity.models import Client, Organisation
from app.identity.roles import Principal, Role


def build_organisation(session: Session, *, region: str = "eu-west-1") -> Organisation:
    row = Organisation(name=f"organisation {secrets.token_hex(6)}", region=region)
    session.add(row)
    session.flush()
    return row


def build_client(session: Session, organisation: Organisation, *, public_key: bytes | None = None) -> Client:
    row = Client(
        organisation_id=organisation.id,
        region=organisation.region,
        name=f"client {secrets.token_hex(4)}",
        public_key=public_key or secrets.token_bytes(32),
        capability={},
    )
    session.add(row)
    session.flush()
    return row


def build_account(
    session: Session,
    client: Client,
    *,
    epsilon: float = 8.0,
    delta: float = 1e-5,
    order: float | None = None,
) -> UUID:
    return ledger.open_account(
        session,
        organisation_id=client.organisation_id,
        client_id=client.id,
        population=f"data set {secrets.token_hex(4)}",
        kind="basic" if order is None else "renyi",
        epsilon=epsilon,
        delta=delta,
        order=order,
        actor=f"client:{client.id}",
    )


def principal_of(client: Client) -> Principal:
    return Principal(id=client.id, organisation_id=client.organisation_id, role=Role.CLIENT)
