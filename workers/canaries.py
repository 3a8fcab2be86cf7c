"""The canaries in a central run's rounds, as the worker has them: from secret, manifest and draw to scores.

They are drawn again from the run's secret whenever they are needed. What is kept of a round is how all of
them score, encrypted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from app.core.crypto import Vault
from app.rounds import canaries as kept
from app.runs.canaries import seated, secret_of
from app.runs.manifest import Manifest
from app.runs.models import Run
from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_in_rounds import contributions, round_scores, run_report, stream_parameters
from engines.privacy.audit_report import AuditReport
from engines.privacy.central import CentralPlan
from engines.privacy.round_stream import Parameter
from workers.layout import update_shapes


class CanariesDiffer(Exception):
    """The run's secret does not give the canaries that its manifest has committed to."""


def canaries_of(manifest: Manifest, vault: Vault, run_id: UUID) -> Canaries:
    """Draw the canaries of a plan that asks for some; every round of such a run moves the same numbers."""
    dimension = sum(math.prod(shape) for shape in update_shapes(manifest, number=1).values())
    return Canaries(secret_of(vault, run_id), count=manifest.privacy.canaries, dimension=dimension)


def committed(run: Run, vault: Vault) -> Canaries | None:
    """Draw the canaries of a started run; None where it has none in its rounds.

    Raises CanariesDiffer: the master key is not the one that the run was priced under.
    """
    if not seated(run.manifest):
        return None
    found = canaries_of(Manifest.model_validate(run.manifest), vault, run.id)
    if found.commitment != run.manifest["privacy"]["audit"]["commitment"]:
        raise CanariesDiffer(str(run.id))
    return found


@dataclass(frozen=True, slots=True)
class SeatedCanaries:
    """The canaries of a run, and which of them are in one round."""

    canaries: Canaries = field(repr=False)
    drawn: tuple[int, ...] = field(repr=False)

    def updates(
        self, shapes: Mapping[str, Sequence[int]], *, clip_norm: float
    ) -> Iterator[dict[str, Tensor]]:
        """Walk through what the drawn canaries send, each in the form of a client's update."""
        widths = [math.prod(shape) for shape in shapes.values()]
        for row in contributions(self.canaries, self.drawn, clip_norm=clip_norm):
            parts = torch.split(torch.from_numpy(row), widths)
            yield {
                name: part.reshape(tuple(shape))
                for (name, shape), part in zip(shapes.items(), parts, strict=True)
            }

    def parameters(self) -> dict[str, Parameter]:
        """What the round's stream is bound to besides the plan."""
        return stream_parameters(self.canaries, self.drawn)

    def scores(self, update: Mapping[str, Tensor], plan: CentralPlan) -> bytes:
        """How every canary of the run scores in what the round lets out: little-endian float64."""
        found = round_scores(self.canaries, update, divisor=plan.divisor, noise_std=plan.noise_std)
        return found.astype("<f8").tobytes()


def seated_in(session: Session, vault: Vault, run: Run, round_id: UUID) -> SeatedCanaries | None:
    """The canaries of a round; None where its run has none."""
    found = committed(run, vault)
    return None if found is None else SeatedCanaries(found, kept.drawn_for(session, round_id))


def report_of_run(session: Session, vault: Vault, run: Run) -> AuditReport | None:
    """Open the coins of a run that is over; None where no round of it was noised, or all is forgotten."""
    found, price = committed(run, vault), run.price or {}
    rows = [] if found is None else kept.scores_of(session, vault, run.id)
    if found is None or not rows:
        return None
    return run_report(
        found,
        np.stack([np.frombuffer(row, dtype="<f8") for row in rows]),
        claimed_epsilon=float(price["epsilon"]),
        claimed_delta=float(price["delta"]),
    )
