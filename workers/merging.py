"""A round's updates under a robust rule: who is fit, what comes out, and what is odd about whom.

For trusts under which the server may look at single updates (`local`, `none`). Updates are read in pieces in
the order of client ids and added in float64: the result hangs neither on who came first nor on the machine's
memory. A rule whose precondition fails for the updates that are left refuses; nothing falls back to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import numpy as np
from torch import Tensor

from app.core.i18n import _
from app.custody.blobs import Blobs
from app.custody.keys import BlobRef
from app.runs.manifest import Manifest
from engines.aggregation.centres import NotConverged
from engines.aggregation.detection import Evidence, Finding, Measure, gather, judge
from engines.aggregation.gate import Admission, NoneFinite, admit
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.kernels import Numbers
from engines.aggregation.linear import weighted_mean
from engines.aggregation.rows import Mixed, Rows, Scaled, Streamed, Weights
from engines.aggregation.rules import Mixing, Setting, SettingMissing, TooFewClients, merge
from engines.aggregation.steps import buffered_mean
from engines.lora.methods import PRODUCT_METHODS
from engines.lora.spectrum import Projection
from workers.layout import read_state, update_file_of, update_shapes
from workers.means import Mean, Sent, gram_of, moved
from workers.products import Products, needs_products
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
    """Shape (d,), float32: of the tensors that this round trains."""
    refusal: Refusal | None
    judged: tuple[Judged, ...]
    state: dict[str, Tensor] | None = None
    """What the next round starts from, where it is not the start plus the change."""
    missed: Projection | None = None
    """What of the clients' mean weight change it does not hold, where that is formed."""
    means: Mapping[UUID, Mean] = field(default_factory=dict)
    """What clients have sent so far, where the rule remembers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """What a round's clients started from."""

    round_id: UUID
    number: int
    adapter: BlobRef
    """Of the state."""
    ranks: Mapping[UUID, int]
    """LoRA ranks of clients that do not train at the run's."""
    ages: Mapping[UUID, int] = field(default_factory=dict)
    """In a buffered run, how many releases each update's adapter is behind."""
    means: Mapping[UUID, Mean] = field(default_factory=dict)
    """What clients had sent before it, where the rule remembers it."""


def merged(
    blobs: Blobs,
    manifest: Manifest,
    updates: Sequence[tuple[UUID, BlobRef]],
    *,
    began: Began,
    min_updates: int,
    worth: Mapping[UUID, float],
    lot: Callable[[UUID], bytes],
) -> Merged:
    """Check, clip, judge and merge a round's updates.

    Args:
        blobs: where the updates lie.
        manifest: the run's.
        updates: (client id, blob), at least one, in the order of client ids.
        began: what they are changes of.
        min_updates: fewer that count, and the round has lost its quorum.
        worth: what a client's update counts by its standing; 1 where it is missing.
        lot: a secret of the server about each client, by which buckets are filled.
    Raises:
        BrokenTensors, Unavailable: a blob is not what was accepted, or not there.
    """
    ids, weights = _weighed(updates, worth)
    with opened(blobs, manifest, updates, began=began) as source:
        admission = _admitted(source, manifest)
        if admission is None:
            return Merged(None, QUORUM_LOST, tuple(map(_turned_away, ids)))
        kept, counting = [ids[row] for row in admission.kept], weights[list(admission.kept)]
        if np.count_nonzero(counting) < min_updates:
            return Merged(None, QUORUM_LOST, _judged(ids, admission, weights, {}))
        pairs = _pairs(source, manifest, admission, began=began, kept=kept, blobs=blobs)
        means = _moved_means(blobs, source, manifest, admission, began=began, updates=updates)
        grams = _grams(blobs, manifest, admission.rows, pairs, means)
        if manifest.buffered is None:
            made = _apply(admission.rows, manifest, weights=counting, grams=grams, lots=[*map(lot, kept)])
        else:
            made = _buffered(admission.rows, manifest, counting, [began.ages[one] for one in kept])
        told = _told(admission, made, pairs, ids=ids, weights=weights, products=grams.now)
        return replace(told, means=means)


def _admitted(source: BlobUpdates, manifest: Manifest) -> Admission | None:
    """Who is fit, clipped; None where nobody is."""
    try:
        return admit(Streamed(source), clip_norm=manifest.aggregation.clip_norm)
    except NoneFinite:
        return None


@dataclass(frozen=True, slots=True)
class Grams:
    """Inner products of clients, each shape (n, n); None where they are not looked at."""

    now: Weights | None
    """Of the round's updates."""
    past: Weights | None
    """Of their means over the rounds so far, these updates included."""

    def among(self, rows: Sequence[int]) -> Grams:
        """Of some of the clients."""
        both = (None if one is None else one[np.ix_(rows, rows)] for one in (self.now, self.past))
        return Grams(*both)


def _moved_means(
    blobs: Blobs,
    source: BlobUpdates,
    manifest: Manifest,
    admission: Admission,
    *,
    began: Began,
    updates: Sequence[tuple[UUID, BlobRef]],
) -> dict[UUID, Mean]:
    """What those who were admitted have sent so far, where the rule remembers it; else nothing."""
    memory = manifest.aggregation.settings.memory
    if memory is None:
        return {}
    sent = Sent(
        source=source,
        kept=admission.kept,
        factors=admission.factors[list(admission.kept)],
        client_ids=[updates[row][0] for row in admission.kept],
        tenants=[updates[row][1].tenant for row in admission.kept],
        round_id=began.round_id,
        number=began.number,
    )
    return dict(zip(sent.client_ids, moved(blobs, sent, began.means, memory=memory), strict=True))


def _grams(
    blobs: Blobs, manifest: Manifest, rows: Rows, pairs: Products | None, means: Mapping[UUID, Mean]
) -> Grams:
    past = gram_of(blobs, [*means.values()], dimension=rows.dimension) if means else None
    return Grams(_compared(rows, manifest, pairs), past)


def _told(
    admission: Admission,
    made: _Made,
    pairs: Products | None,
    *,
    ids: Sequence[UUID],
    weights: Weights,
    products: Weights | None,
) -> Merged:
    """What was made of the updates, what is odd about whom, and the next state where products make it."""
    if made.change is None:
        return Merged(None, made.refusal, _judged(ids, admission, weights, {}))
    found = _findings([ids[row] for row in admission.kept], admission.rows, made.change, products)
    judged = _judged(ids, admission, weights, found)
    if pairs is None or made.shares is None:
        return Merged(made.change, None, judged)
    state, missed = pairs.next_state(made.shares, made.change)
    return Merged(made.change, None, judged, state if pairs.make_the_state else None, missed)


def _weighed(
    updates: Sequence[tuple[UUID, BlobRef]], worth: Mapping[UUID, float]
) -> tuple[list[UUID], Weights]:
    ids = [client_id for client_id, _ref in updates]
    return ids, np.array([worth.get(client_id, 1.0) for client_id in ids])


def opened(
    blobs: Blobs, manifest: Manifest, updates: Sequence[tuple[UUID, BlobRef]], *, began: Began
) -> BlobUpdates:
    """A round's updates as rows of the run's rank, whatever rank each client's file is of."""
    usual = manifest.lora.rank
    by_rank = {
        rank: update_file_of(manifest, number=began.number, rank=rank)
        for rank in {*began.ranks.values(), usual}
    }
    sent = [by_rank[began.ranks.get(client_id, usual)] for client_id, _ref in updates]
    files = blobs.locate([ref for _id, ref in updates])
    return BlobUpdates(blobs, files, by_rank[usual], sent=sent)


def _pairs(
    source: BlobUpdates,
    manifest: Manifest,
    admission: Admission,
    *,
    began: Began,
    kept: Sequence[UUID],
    blobs: Blobs,
) -> Products | None:
    if not needs_products(manifest):
        return None
    return Products(
        source,
        manifest,
        state=read_state(blobs.of(began.adapter.tenant), began.adapter.sha256, manifest),
        shapes=update_shapes(manifest, number=began.number),
        kept=admission.kept,
        factors=admission.factors[list(admission.kept)],
        ranks=[began.ranks.get(client_id) for client_id in kept],
        number=began.number,
    )


def _compared(rows: Rows, manifest: Manifest, pairs: Products | None) -> Weights | None:
    """Inner products of the updates, or of the weight changes that they mean; None of too many."""
    if pairs is not None and pairs.make_the_state:
        is_wanted = rows.clients <= MOST_COMPARED or manifest.aggregation.rule != "mean"
        return pairs.gram() if is_wanted else None
    return gram(rows) if rows.clients <= MOST_COMPARED else None


@dataclass(frozen=True, slots=True)
class _Made:
    """What a rule made of the updates."""

    change: Numbers | None
    refusal: Refusal | None = None
    shares: Weights | None = None
    """What each of them counts in it, shape (n,); None of a rule by coordinate."""


def _apply(rows: Rows, manifest: Manifest, *, weights: Weights, grams: Grams, lots: list[bytes]) -> _Made:
    """Run the rule over those that count; whoever only watches is left out altogether."""
    aggregation, clients = manifest.aggregation, rows.clients
    counted = np.flatnonzero(weights).tolist()
    if len(counted) < clients:
        rows, weights = Scaled(rows, counted, np.ones(len(counted))), weights[counted]
        grams = grams.among(counted)
    order = np.array(sorted(range(len(counted)), key=lambda row: lots[counted[row]]), dtype=np.intp)
    given = {name: value for name, value in aggregation.settings.model_dump().items() if value is not None}
    setting = Setting(faulty=aggregation.faulty, order=order, **given)
    if manifest.lora.method in PRODUCT_METHODS and grams.now is not None and aggregation.rule != "mean":
        rows = Mixed(rows, np.eye(rows.clients), base_gram=grams.now)  # distances are those of products
    rule, mixing = aggregation.rule, Mixing(aggregation.mixing)
    try:
        outcome = merge(rows, setting, rule=rule, mixing=mixing, products=grams.now, past=grams.past)
    except (TooFewClients, SettingMissing):
        return _Made(None, RULE_UNMET)
    except NotConverged:
        return _Made(None, RULE_FAILED)
    change, shares = outcome.values, outcome.weights
    if aggregation.rule == "mean" and aggregation.mixing == "none" and (weights != 1.0).any():
        change, shares = weighted_mean(rows, weights), weights / weights.sum()
    if shares is None:
        return _Made(change)
    everyone = np.zeros(clients)
    everyone[counted] = shares
    return _Made(change, None, everyone)


def _buffered(rows: Rows, manifest: Manifest, weights: Weights, ages: Sequence[int]) -> _Made:
    """The sum of a buffer by age over its constant size; whoever was turned away counts as zero."""
    return _Made(buffered_mean(rows, ages, buffer=manifest.quorum.max_updates, worth=weights.tolist()))


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
