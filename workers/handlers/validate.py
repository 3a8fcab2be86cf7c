"""The candidate adapter, read back from its blob: whole, finite and bounded, or the round is aborted."""

from __future__ import annotations

import math
from uuid import UUID

from torch import Tensor

from app.core.i18n import _
from app.custody.blobs import TenantBlobs
from app.jobs import leases
from app.jobs.leases import Claim
from app.rounds import lifecycle
from app.rounds.queries import get_round, lock_round
from app.rounds.states import RoundState
from app.runs.auditing import release_or_audit
from app.runs.manifest import Manifest
from app.runs.methods import BY_COORDINATE
from app.runs.models import Run
from app.runs.queries import lock_run
from app.runs.service import after_abort
from engines.aggregation.checks import is_finite
from engines.lora.methods import PRODUCT_METHODS
from workers.checkpoints import reach
from workers.context import ACTOR, Context
from workers.layout import read_state
from workers.tensors import BrokenTensors

LARGEST_NORM = 1e6
"""L2 norm over a whole adapter beyond which no model answers sensibly any more."""
SLACK = 1.0 + 1e-5
"""The aggregate of clipped updates may exceed their bound by float32 rounding only."""

UNFIT = (
    "validation_failed",
    _("The aggregated adapter is not whole, not finite or out of bounds, and was not published."),
)


def run(context: Context, claim: Claim) -> None:
    """Check the candidate of one round and ask for its publication or its run's audit, or abort the round."""
    round_id = UUID(claim.payload["round_id"])
    with context.database.run_tx("validate read") as session:
        leases.fence(session, claim)
        row = get_round(session, round_id)
        if row.state is not RoundState.VALIDATING or row.candidate_sha256 is None:
            leases.finish(session, claim)
            return
        manifest = Manifest.model_validate(session.get_one(Run, row.run_id).manifest)
    reach("validate.after_read")
    blobs = context.blobs.of(row.organisation_id)
    fit = is_fit(blobs, row.candidate_sha256, manifest=manifest, start_sha256=row.adapter_sha256)
    reach("validate.after_compute")
    with context.database.run_tx("validate end") as session:
        leases.finish(session, claim)
        run_row = lock_run(session, row.run_id)  # always the run before its round
        if lock_round(session, round_id).state is not RoundState.VALIDATING:
            return  # aborted by hand meanwhile
        if fit:
            release_or_audit(session, run_row, round_id, actor=ACTOR)
            return
        code, reason = UNFIT
        lifecycle.abort(session, round_id, code=code, reason=reason, actor=ACTOR)
        after_abort(session, row.run_id, code=code, reason=reason, actor=ACTOR)
    reach("validate.after_tx")


def is_fit(blobs: TenantBlobs, candidate_sha256: str, *, manifest: Manifest, start_sha256: str) -> bool:
    """Say whether a candidate may be published: keys, shapes, finite, and no longer than allowed."""
    try:
        candidate = read_state(blobs, candidate_sha256, manifest)
    except BrokenTensors:
        return False
    if not is_finite(candidate) or _norm(candidate) > LARGEST_NORM:
        return False
    bound = _longest_step(manifest)
    if bound is None:
        return True
    start = read_state(blobs, start_sha256, manifest)
    step = {name: tensor.double() - start[name].double() for name, tensor in candidate.items()}
    rounding = 2.0**-23 * (_norm(candidate) + _norm(start))
    return _norm(step) <= bound * SLACK + rounding


def _longest_step(manifest: Manifest) -> float | None:
    """How long a step can be that was made of clipped updates; None where they are not clipped, and where
    factors are written anew from their products.

    A mixture of updates is no longer than the longest. A rule by coordinate keeps at least one of n values in
    each: the squares of its output are at most those of all n updates together.
    """
    aggregation = manifest.aggregation
    if aggregation.clip_norm is None or manifest.lora.method in PRODUCT_METHODS:
        return None
    bound = aggregation.clip_norm
    if aggregation.rule in BY_COORDINATE:
        bound *= math.sqrt(manifest.quorum.max_updates)
    optimizer = aggregation.server_optimizer
    return bound if optimizer is None else optimizer.longest(bound)


def _norm(tensors: dict[str, Tensor]) -> float:
    return float(sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5)
