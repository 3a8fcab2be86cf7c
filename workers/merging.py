"""A round's updates under a robust rule: who is fit, what comes out, and what is odd about whom.

For trusts under which the server may look at single updates (`local`, `none`). Updates are read in pieces in
the order of client ids and added in float64: the result hangs neither on who came first nor on the machine's
memory. A rule whose precondition fails for the updates that are left refuses; nothing falls back to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from app.core.blobs import LocalBlobs
from app.core.i18n import _
from app.runs.manifest import Manifest
from engines.aggregation.centres import NotConverged
from engines.aggregation.detection import Evidence, Finding, Measure, gather, judge
from engines.aggregation.gate import Admission, NoneFinite, admit
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.kernels import Numbers
from engines.aggregation.linear import weighted_mean
from engines.aggregation.rows import Rows, Scaled, Streamed, Weights
from engines.aggregation.rules import Mixing, Setting, SettingMissing, TooFewClients, merge
from engines.aggregation.steps import buffered_mean
from workers.sources import BlobUpdates

MOST_COMPARED = 1024
"""Updates of a round that are compared with each other: what is kept of each pair stays at 8 MiB a matrix."""
FEWEST_JUDGED = 5
"""With fewer updates none is an outlier, and a round says nothing about anybody."""

Refusal = tuple[str, str]
QUORUM_LOST: Refusal = (
    "quorum_lost",
    _("Updates that were not finite were rejected, and too few are left."),
)
RULE_UNMET: Refusal = (
    "rule_precondition",
    _("Too few updates are left for the rule to bear as many hostile clients as the plan assumes."),
)
RULE_FAILED: Refusal = (
    "rule_failed",
    _("The rule came to no result that it can vouch for."),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a round says about one client."""

    client_id: UUID
    finite: bool
    norm: float | None
    clipped: bool
    weight: float
    """What it counts by its client's standing."""
    evidence: Evidence | None = None
    finding: Finding | None = None

    @property
    def odd(self) -> bool:
        """Whether it was found odd: beside the others, or, where nobody could be compared, by itself."""
        return not self.finite or (self.finding is not None and bool(self.finding.odd))

    @property
    def measures(self) -> list[str]:
        """What is odd about it."""
        if not self.finite:
            return [str(Measure.NOT_FINITE)]
        return [] if self.finding is None else [str(measure) for measure in self.finding.odd]


@dataclass(frozen=True, slots=True)
class Merged:
    """A change of the model, or why there is none; and what was found about every client."""

    change: Numbers | None
    """Shape (d,), float32."""
    refusal: Refusal | None
    judged: tuple[Judged, ...]


def merged(
    blobs: LocalBlobs,
    manifest: Manifest,
    updates: Sequence[tuple[UUID, str]],
    *,
    min_updates: int,
    worth: Mapping[UUID, float],
    ages: Mapping[UUID, int],
    lot: Callable[[UUID], bytes],
) -> Merged:
    """Check, clip, judge and merge a round's updates.

    Args:
        blobs: where the updates lie.
        manifest: the run's.
        updates: (client id, blob), at least one, in the order of client ids.
        min_updates: fewer that count, and the round has lost its quorum.
        worth: what a client's update counts by its standing; 1 where it is missing.
        ages: in a buffered run, how many releases each update's adapter is behind.
        lot: a secret of the server about each client, by which buckets are filled.
    Raises:
        BrokenTensors, Unavailable: a blob is not what was accepted, or not there.
    """
    ids, digests = zip(*updates, strict=True)
    weights = np.array([worth.get(client_id, 1.0) for client_id in ids])
    with BlobUpdates(blobs, digests, manifest.sent) as source:
        try:
            admission = admit(Streamed(source), clip_norm=manifest.aggregation.clip_norm)
        except NoneFinite:
            return Merged(None, QUORUM_LOST, tuple(_turned_away(one) for one in ids))
        kept = [ids[row] for row in admission.kept]
        counting = weights[list(admission.kept)]
        if np.count_nonzero(counting) < min_updates:
            return Merged(None, QUORUM_LOST, _judged(ids, admission, weights, {}))
        products = gram(admission.rows) if len(kept) <= MOST_COMPARED else None
        lots, old = map(lot, kept), [ages.get(client_id, 0) for client_id in kept]
        change, refusal = _apply(admission.rows, manifest, counting, products=products, lots=lots, ages=old)
        found = {} if change is None else _findings(kept, admission.rows, change, products)
    return Merged(change, refusal, _judged(ids, admission, weights, found))


def _apply(
    rows: Rows,
    manifest: Manifest,
    weights: Weights,
    *,
    products: Weights | None,
    lots: Iterable[bytes],
    ages: list[int],
) -> tuple[Numbers | None, Refusal | None]:
    """Run the rule over those that count; whoever only watches is left out altogether.

    A buffer is divided by its constant size: there whoever does not count is zero.
    """
    aggregation = manifest.aggregation
    if manifest.buffered is not None:
        size = manifest.quorum.max_updates
        return buffered_mean(rows, ages, buffer=size, worth=weights.tolist()), None
    counted = np.flatnonzero(weights).tolist()
    if len(counted) < rows.clients:
        rows, weights = Scaled(rows, counted, np.ones(len(counted))), weights[counted]
        products = None if products is None else products[np.ix_(counted, counted)]
    every = list(lots)
    drawn = [every[row] for row in counted]
    order = np.array(sorted(range(len(drawn)), key=drawn.__getitem__), dtype=np.intp)
    given = {name: value for name, value in aggregation.settings.model_dump().items() if value is not None}
    setting = Setting(faulty=aggregation.faulty, order=order, **given)
    try:
        outcome = merge(
            rows, setting, rule=aggregation.rule, mixing=Mixing(aggregation.mixing), products=products
        )
    except (TooFewClients, SettingMissing):
        return None, RULE_UNMET
    except NotConverged:
        return None, RULE_FAILED
    if aggregation.rule == "mean" and aggregation.mixing == "none" and (weights != 1.0).any():
        return weighted_mean(rows, weights), None
    return outcome.values, None


def _findings(
    kept: Sequence[UUID], rows: Rows, change: Numbers, products: Weights | None
) -> dict[UUID, tuple[Evidence, Finding]]:
    if products is None or len(kept) < FEWEST_JUDGED:
        return {}
    evidence = gather(rows, change, squared_distances(products))
    return dict(zip(kept, zip(evidence, judge(evidence), strict=True), strict=True))


def _judged(
    ids: Sequence[UUID],
    admission: Admission,
    weights: Weights,
    found: Mapping[UUID, tuple[Evidence, Finding]],
) -> tuple[Judged, ...]:
    clipped = frozenset(admission.clipped)
    judged = []
    for row, client_id in enumerate(ids):
        norm = float(admission.norms[row])
        if not math.isfinite(norm):
            judged.append(_turned_away(client_id))
            continue
        evidence, finding = found.get(client_id, (None, None))
        judged.append(Judged(client_id, True, norm, row in clipped, float(weights[row]), evidence, finding))
    return tuple(judged)


def _turned_away(client_id: UUID) -> Judged:
    return Judged(client_id, False, None, False, 0.0)
