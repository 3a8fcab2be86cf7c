"""Bodies of the endpoints of runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.core.strict import Name, Reason, StrictModel
from app.releases.schemas import ReleaseOut
from app.runs.manifest import EXAMPLE, Manifest
from app.runs.models import Run, RunLog
from app.runs.queries import OpenAssignment
from app.runs.states import RunState

_ID = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"
_OTHER_ID = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e78"


class RunIn(StrictModel):
    """A plan: what is trained, how privately, and by which clients."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "spam filter over two mailboxes",
                    "manifest": EXAMPLE | {"quorum": {"min_updates": 2, "max_updates": 2}},
                    "client_ids": [_ID, _OTHER_ID],
                }
            ]
        }
    )

    manifest: Manifest
    client_ids: Annotated[list[UUID], Field(min_length=1, max_length=10_000)]
    name: Name | None = None
    from_release_id: UUID | None = None
    """Start from this release instead of a fresh adapter; base model and shape must be the same."""
    clone_of_id: UUID | None = None
    """The run that this plan was copied from; kept for the record."""


class ManifestIn(StrictModel):
    """A draft's new manifest."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"manifest": EXAMPLE}]})

    manifest: Manifest


class StopIn(StrictModel):
    """Why a run is ended."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "The study was withdrawn."}]})

    reason: Reason


class RollbackIn(StrictModel):
    """To which of its releases a run is taken back, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"release_id": _ID, "reason": "Since round 7 it calls every newsletter spam."}]
        }
    )

    release_id: UUID
    reason: Reason


class RolledBack(BaseModel):
    """What a roll-back did."""

    goes_on_from: UUID
    """The release that the next round starts from, if the run has one."""
    rolled_back: list[ReleaseOut]
    """Those that were marked, oldest first."""


class PriceOut(BaseModel):
    """What the plan costs, for its whole pre-committed schedule; all null with trust `none`."""

    model_config = ConfigDict(extra="ignore")

    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    epsilon_by_round: list[float] = []
    """Cumulative, after each round of a client's own: what its account spends. Under `fedask` the first half
    of them pays for all that train."""
    epsilon_rdp: float | None = None
    """By the Renyi accountant, for comparison; null where it has no bound for the sampling."""
    epsilon_by_silos: dict[str, float] = {}
    """With unit `person`: epsilon of a person in so many data sets of the run."""
    clip_noise_multiplier: float | None = None
    """With adaptive clipping: what is left of the noise multiplier to the sum of updates."""
    attack_tpr_at_1_percent: float | None = None
    """The greatest true-positive rate of any membership attack at 1 % false positives."""
    canaries: int = 0
    """Made-up contributions that take places in the rounds for an audit: the price is for them as well."""
    accountant: str | None = None
    rdp: dict[str, float] = {}
    """Divergence at the order of each renyi account that would pay."""


class ShortfallOut(BaseModel):
    """What an account lacked when it was asked for a run, as it stands now."""

    account_id: UUID
    population: str
    amounts_in: str
    """What runs out: `epsilon`, `delta`, or `renyi_divergence`."""
    asked: float
    left: float
    ceiling: float


class RunOut(BaseModel):
    """A run."""

    id: UUID
    organisation_id: UUID
    name: str
    state: RunState
    version: int
    """Grows with every change; what `since` compares."""
    reason_code: str | None
    """Why the run was refused, paused or aborted; stable."""
    reason: str | None
    shortfall: ShortfallOut | None
    """Of a run refused as `budget_exceeded`, where you may see an account that does not cover it."""
    manifest: dict[str, Any]
    manifest_sha256: str | None
    """Set when the run starts: from then on the manifest is fixed."""
    price: PriceOut | None
    client_ids: list[UUID]
    """A training client sees itself only."""
    from_release_id: UUID | None
    clone_of_id: UUID | None
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, run: Run, client_ids: Sequence[UUID], shortfall: dict[str, Any] | None) -> Self:
        """From a row, the clients that the caller may see, and what one of their accounts lacks."""
        return cls(
            id=run.id,
            organisation_id=run.organisation_id,
            name=run.name,
            state=run.state,
            version=run.version,
            reason_code=run.reason_code,
            reason=run.reason,
            shortfall=None if shortfall is None else ShortfallOut.model_validate(shortfall),
            manifest=run.manifest,
            manifest_sha256=run.manifest_sha256,
            price=None if run.price is None else PriceOut.model_validate(run.price),
            client_ids=list(client_ids),
            from_release_id=run.from_release_id,
            clone_of_id=run.clone_of_id,
            created_by=run.created_by,
            created_at=run.created_at,
            started_at=run.started_at,
            finished_at=run.finished_at,
        )


class RunStep(BaseModel):
    """One step in a run's life."""

    src: str
    dst: str
    actor: str
    at: datetime

    @classmethod
    def of(cls, row: RunLog) -> Self:
        """From a row of the log."""
        return cls(src=row.src, dst=row.dst, actor=row.actor, at=row.at)


class RunHistory(BaseModel):
    """What happened to a run, oldest first."""

    items: list[RunStep]


class AssignmentOut(BaseModel):
    """A round that waits for the calling client's update."""

    round_id: UUID
    run_id: UUID
    number: int
    rounds: int
    """How many the manifest plans."""
    deadline: datetime | None
    manifest_sha256: str
    adapter_sha256: str
    rank: int | None = None
    """The LoRA rank at which the client trains, where the run mixes ranks; null is the manifest's."""
    counted: int | None = None
    """In a run with control variates, the last round whose release holds an update of this client; null
    before there is one, and in every other run."""

    @classmethod
    def of(cls, found: OpenAssignment) -> Self:
        """From a round and its run."""
        return cls.model_validate(
            {
                "round_id": found.round.id,
                "run_id": found.run.id,
                "number": found.round.number,
                "rounds": found.run.manifest["rounds"],
                "deadline": found.round.deadline,
                "manifest_sha256": found.run.manifest_sha256,
                "adapter_sha256": found.round.adapter_sha256,
                "rank": found.rank,
                "counted": found.counted,
            }
        )


class Assignments(BaseModel):
    """What a training client has to do."""

    items: list[AssignmentOut]
