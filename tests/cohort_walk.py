"""Looks at everything that the API shows, as every role, of a run whose cohorts are secret."""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from fastapi import FastAPI
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.audit.models import AuditEntry
from app.budget.queries import accounts_of_clients
from app.core.settings import Settings
from app.http.deps import Requires
from app.identity.keys import ensure_signing_keys
from app.identity.models import Organisation
from app.identity.permissions import PERMISSIONS
from app.identity.roles import Principal, Role
from app.main import api_routes, declared
from app.policies.rules import PeriodCeiling, Rules
from app.policies.service import set_rules
from app.releases.models import Release
from app.rounds.models import Round
from app.rounds.queries import rounds_of
from app.runs.models import Run
from app.runs.queries import client_ids_of
from app.updates.models import Update
from tests.builders import build_organisation
from tests.central import CLIENTS, first_round, set_cohort, start_central_run
from tests.federation import sha256_of, update_file
from tests.http.accounts import VAULT, Caller, add_caller, client_headers
from tests.worker_bench import trained
from workers.tensors import write_tensors

STAFF = [role for role in Role if role is not Role.CLIENT]
OUTSIDER = CLIENTS - 1
"""The number of a client of the run that no test draws."""
LOOKED_UP = 1
"""The number of the client whose own pages are looked at: some tests draw it and some do not."""
QUERIES = {"/v1/audit/proofs/inclusion": "?index=0&size=1"}
_VARIES = re.compile(r'"(last_used_at|last_used_address|request_id)":("[^"]*"|null)')


@dataclass
class Walk:
    """A started run with a secret cohort, and everybody who could look at it."""

    api: TestClient
    session: Session
    run: Run
    round: Round
    client_ids: list[UUID]
    staff: dict[Role, Caller]
    sent: list[tuple[str, str]] = field(default_factory=list)
    """(update id, digest) of everything that was sent: nobody else may ever be shown either."""

    def draw(self, *numbers: int) -> None:
        set_cohort(self.session, self.round.id, [self.client_ids[number] for number in numbers])

    def as_client(self, number: int) -> dict[str, str]:
        organisation_id = self.run.organisation_id
        principal = Principal(self.client_ids[number], organisation_id, Role.CLIENT)
        return client_headers(self.api.app, principal)  # type: ignore[arg-type]  # it is our FastAPI

    def put(self, number: int) -> Response:
        """The client sends its update."""
        body, update_id = update_file(self.run.manifest, fill=number), str(uuid4())
        digest = bytes.fromhex(sha256_of(body))
        self.sent.append((update_id, digest.hex()))
        return self.api.put(
            f"/v1/rounds/{self.round.id}/updates/{update_id}",
            content=body,
            headers=self.as_client(number)
            | {
                "Content-Type": "application/octet-stream",
                "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
            },
        )

    def looked_at(self, **clients: int) -> dict[tuple[str, str], str]:
        """What every endpoint answers to every member of the staff, to a client that was not drawn, and to
        further clients by number."""
        viewers = {role.value: (role, caller.headers) for role, caller in self.staff.items()}
        for name, number in {"outsider": OUTSIDER, **clients}.items():
            viewers[name] = (Role.CLIENT, self.as_client(number))
        found = {}
        for name, (role, headers) in viewers.items():
            for path, permission in readable(self.api):
                if role in PERMISSIONS[permission]:
                    for filled in self.addresses(path + QUERIES.get(path, "")):
                        answer = self.api.get(filled, headers=headers)
                        assert answer.status_code in {200, 404}, (filled, answer.text)
                        found[name, filled] = _VARIES.sub("", shown(answer))
        return found

    def addresses(self, path: str) -> list[str]:
        """A path with the ids of this run filled in; of every round, update and release that there is."""
        client_id = self.client_ids[LOOKED_UP]
        account = accounts_of_clients(self.session, [client_id])[client_id]
        ids: dict[str, Any] = {"run_id": self.run.id, "client_id": client_id, "account_id": account.id}
        ids["member_id"] = next(iter(self.staff.values())).principal.id
        ids |= {"organisation_id": self.run.organisation_id, "version": 1}
        return [path.format_map(ids | several) for several in self._several(path)]

    def _several(self, path: str) -> list[dict[str, UUID]]:
        if "update_id" in path:
            rows = self.session.execute(sa.select(Update.id, Update.round_id))
            return [{"update_id": update_id, "round_id": round_id} for update_id, round_id in rows]
        if "entry_id" in path:
            return [
                {"entry_id": name}
                for name in self.session.scalars(sa.select(AuditEntry.id).order_by(AuditEntry.id))
            ]
        if "release_id" in path:
            return [{"release_id": name} for name in self.session.scalars(sa.select(Release.id))]
        if "round_id" in path:
            return [{"round_id": row.id} for row in rounds_of(self.session, self.run.id)]
        return [{}]

    def require_no_trace(self, texts: dict[tuple[str, str], str]) -> None:
        for (viewer, path), text in texts.items():
            for update_id, digest in self.sent:
                assert update_id not in text.replace(path, ""), (viewer, path)
                assert digest not in text, (viewer, path)


def shown(answer: Response) -> str:
    """Everything of an answer; of an adapter's file, its size and the names and shapes of its tensors."""
    head = f"{answer.status_code} {answer.headers.get('etag')}"
    if answer.headers["content-type"] != "application/octet-stream":
        return f"{head} {answer.text}"
    (header_bytes,) = struct.unpack("<Q", answer.content[:8])
    return f"{head} {len(answer.content)} {answer.content[8 : 8 + header_bytes].decode()}"


def readable(api: TestClient) -> list[tuple[str, str]]:
    """Every GET endpoint that needs credentials, with its permission."""
    assert isinstance(api.app, FastAPI)
    return [
        (str(route.path_format), rule.permission)
        for route in api_routes(api.app)
        for rule in declared(route)
        if isinstance(rule, Requires) and "GET" in (route.methods or ())
    ]


def walking(
    api: TestClient, session: Session, settings: Settings, *, seal: str | None, **privacy: Any
) -> Walk:
    """A run whose rounds close as `seal` says; keywords change its privacy section.

    Its organisation has data rules, so that each round's opening leaves a decision.
    """
    ensure_signing_keys(session, VAULT)
    organisation: Organisation = build_organisation(session)
    steward = add_caller(session, Role.DATA_STEWARD, organisation.id)
    rules = Rules(epsilon_per_period=PeriodCeiling(epsilon=8.0, days=30), smallest_cohort=3)
    set_rules(session, steward.principal, organisation.id, rules=rules)
    start, _size = write_tensors(api.app.state.blobs.of(organisation.id), trained(0.25))
    run = start_central_run(
        session, settings, organisation=organisation, start_adapter_sha256=start, seal=seal, **privacy
    )
    return Walk(
        api=api,
        session=session,
        run=run,
        round=first_round(session, run, cohort=(0, 1)),
        client_ids=client_ids_of(session, run.id),
        staff={role: add_caller(session, role, organisation.id) for role in STAFF},
    )
