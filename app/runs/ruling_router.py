"""Data rules on a run over HTTP: what they would say, before they are set or a run is started."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.core.strict import StrictModel
from app.http.deps import SessionDep, SettingsDep, requires
from app.http.routes import ThreadedRoute
from app.identity.roles import Principal
from app.policies.rules import EXAMPLE, Rules
from app.policies.schemas import DenialOut
from app.runs import ruling

router = APIRouter(
    prefix="/organisations/{organisation_id}/data-rules", tags=["data rules"], route_class=ThreadedRoute
)


class TrialIn(StrictModel):
    """A run to be judged, and by what."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"run_id": "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77", "rules": EXAMPLE}]}
    )

    run_id: UUID
    """A run with clients of the organisation, in whatever state."""
    rules: Rules | None = None
    """Rules that are not in force; null: those that are."""


class TrialOut(BaseModel):
    """What the rules say about a run, as both stand now. Nothing was changed, decided or noted."""

    organisation_id: UUID
    run_id: UUID
    version: int | None
    """Of the rules in force; null for proposed ones, and where there are none."""
    decision: Literal["allow", "deny"]
    denials: list[DenialOut]


@router.post("/trials")
def try_data_rules(
    organisation_id: UUID,
    body: TrialIn,
    session: SessionDep,
    settings: SettingsDep,
    principal: Annotated[Principal, requires("data_rules:try")],
) -> TrialOut:
    """Judge a run by the rules in force, or by others before they are; every rule that denies is named.

    The run may be another organisation's, if clients of yours are in it.
    """
    found = ruling.try_out(
        session,
        principal,
        organisation_id,
        run_id=body.run_id,
        rules=body.rules,
        region=settings.declared_region,
    )
    return TrialOut.model_validate(
        {
            "organisation_id": organisation_id,
            "run_id": body.run_id,
            "version": found.version,
            "decision": found.decision,
            "denials": [DenialOut.of(denial) for denial in found.denials],
        }
    )
