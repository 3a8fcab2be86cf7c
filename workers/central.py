"""The noised sum of a `central` round: from what was sealed, its secret and the manifest to an update.

The same sealed round gives the same bytes, on any worker and after any death; nothing else gives its noise.
What this module learns of single updates (their norms, whether they are finite) is for the operator's sealed
evidence alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

import torch

from app.custody.blobs import Blobs
from app.custody.keys import BlobRef
from app.runs.manifest import Manifest, PoissonCohort
from engines.privacy.adaptive_clip import AdaptiveClip
from engines.privacy.central import Admitted, CentralPlan, CentralRelease, CentralSum
from engines.privacy.central_trimmed import CentralTrimmedSum
from engines.privacy.noise import NoiseStream
from engines.privacy.round_stream import Parameter, SealedInput, round_stream
from workers.canaries import SeatedCanaries
from workers.layout import update_shapes
from workers.merging import Began, opened
from workers.sources import BlobUpdates
from workers.tensors import Shapes

Sealed = tuple[tuple[UUID, BlobRef], ...]
"""(client id, blob) of every update of a sealed round, in the order of client ids."""
Found = tuple[CentralRelease, tuple[Admitted, ...]]
"""What a round lets out, and what it saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedRound:
    """What a sealed round's noise depends on, besides its updates."""

    round_id: UUID
    clip_norm: float
    clients: int
    """How many the run has: public, and fixed when it started."""
    secret: bytes = field(repr=False)
    canaries: SeatedCanaries | None = None
    """Those of the run, and who of them was drawn; None without an audit in the rounds."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a round lets out."""

    update: dict[str, torch.Tensor]
    next_clip_norm: float | None
    """What adaptive clipping gives the next round; None without it."""
    admitted: tuple[Admitted, ...] = field(repr=False)
    """What was found about each update, in their order. Not noised: it goes nowhere but to its seal."""
    most_updates: int
    """How many there could have been."""
    scores: bytes | None = None
    """How every canary of the run scores; None without canaries."""


def plan_of(manifest: Manifest, noised: NoisedRound) -> CentralPlan:
    """The public constants of a round; raises ValueError where the manifest names no noise."""
    privacy, cohort = manifest.privacy, manifest.privacy.cohort
    if privacy.noise_multiplier is None:
        raise ValueError("a central round needs the noise multiplier that its run was priced with")
    seats = 0 if noised.canaries is None else noised.canaries.canaries.count
    expected, most = float(noised.clients), noised.clients + seats
    if isinstance(cohort, PoissonCohort):
        expected, most = cohort.rate * cohort.n_max, cohort.cap
    adaptive = None
    if privacy.adaptive_clip is not None:
        adaptive = AdaptiveClip(
            bit_std=privacy.adaptive_clip.bit_noise,
            expected_cohort=expected,
            target=privacy.adaptive_clip.quantile,
            learning_rate=privacy.adaptive_clip.learning_rate,
        )
    return CentralPlan(
        clip_norm=noised.clip_norm,
        noise_multiplier=privacy.noise_multiplier,
        divisor=privacy.divisor,
        most_updates=most,
        adaptive=adaptive,
    )


def noised_step(
    blobs: Blobs, manifest: Manifest, noised: NoisedRound, updates: Sealed, *, began: Began
) -> Step:
    """Clip, sum (or trim and sum) and noise what a round's clients and canaries sent, one at a time.

    Args:
        blobs: where the updates lie.
        manifest: the run's, with the noise multiplier that it was priced with.
        noised: the round's secret and constants.
        updates: every update that was received.
        began: what they are changes of. One of a smaller rank is as long as it was: what it lacks is zero.
    Raises:
        ValueError: more updates and canaries than the cohort's cap, or constants out of range.
        BrokenTensors, Unavailable: a blob is not what was accepted, or not there.
    """
    plan = plan_of(manifest, noised)
    summed = _trimmed if manifest.aggregation.rule == "trimmed_mean" else _summed
    shapes = update_shapes(manifest, number=began.number)
    with opened(blobs, manifest, updates, began=began) as source:
        release, admitted = summed(source, manifest, noised, updates, shapes=shapes)
    following = None
    if plan.adaptive is not None and release.share_within is not None:
        following = plan.adaptive.next_clip_norm(plan.clip_norm, share_within=release.share_within)
    scores = None if noised.canaries is None else noised.canaries.scores(release.update, plan)
    return Step(release.update, following, admitted, plan.most_updates, scores)


def _summed(
    source: BlobUpdates, manifest: Manifest, noised: NoisedRound, updates: Sealed, *, shapes: Shapes
) -> Found:
    """The plain sum: canaries go through it as clients do, those with nothing to add included.

    What the wire's rounding did to an update is in it before it is clipped.
    """
    plan = plan_of(manifest, noised)
    total = CentralSum(shapes, plan)
    row = torch.empty(source.dimension, dtype=torch.float32)
    parts = torch.split(row, [math.prod(shape) for shape in shapes.values()])
    update = {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
    admitted = []
    for client in range(source.clients):
        source.read(client, 0, source.dimension, row.numpy())
        admitted.append(total.add(update))
    parameters = total.parameters()
    if noised.canaries is not None:
        for made in noised.canaries.updates(shapes, clip_norm=plan.clip_norm):
            total.add(made)
        parameters |= noised.canaries.parameters()
    return total.release(_stream(noised, parameters, updates)), tuple(admitted)


def _trimmed(
    source: BlobUpdates, manifest: Manifest, noised: NoisedRound, updates: Sealed, *, shapes: Shapes
) -> Found:
    """The robust rule that central noise covers at the price of the sum."""
    aggregation = manifest.aggregation
    trimmed = aggregation.settings.trimmed
    total = CentralTrimmedSum(
        shapes,
        plan_of(manifest, noised),
        updates=source,
        trimmed=aggregation.faulty if trimmed is None else trimmed,
    )
    return total.release(_stream(noised, total.parameters(), updates)), total.admitted


def _stream(noised: NoisedRound, parameters: Mapping[str, Parameter], updates: Sealed) -> NoiseStream:
    return round_stream(
        noised.secret,
        parameters={**parameters, "round": str(noised.round_id)},
        sealed=[
            SealedInput(contribution=str(client_id), digest=bytes.fromhex(ref.sha256))
            for client_id, ref in updates
        ],
    )
