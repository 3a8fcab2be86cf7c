"""The table of robust rules: what each needs, whether central noise can cover it, and how it is run.

The one door for whoever aggregates: gate, then mixing, then the rule. A rule whose precondition fails for
the clients that are left refuses; nothing falls back to another rule in silence.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from engines.aggregation import coordinates, selection
from engines.aggregation.centres import centered_clipping, geometric_median, trusted_sum
from engines.aggregation.gate import Admission, admit
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.kernels import Numbers
from engines.aggregation.linear import weighted_mean, weighted_sum
from engines.aggregation.mixing import buckets, nearest_neighbours, remembered
from engines.aggregation.rows import Anchored, Mixed, Rows, Scaled, Weights


class TooFewClients(ValueError):
    """The rule's precondition on n and f does not hold for the clients that are left."""


class SettingMissing(ValueError):
    """The rule needs a setting that was not given, or one that was given is out of range."""


class Mixing(enum.StrEnum):
    """What is done before the rule."""

    NONE = "none"  # the rule sees the updates
    NEAREST = "nearest_neighbours"  # the rule sees means over each update's n - f nearest
    BUCKETS = "buckets"  # the rule sees means of buckets of clients drawn at random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a rule is told; each uses what it needs. Every number is finite, or it is refused."""

    faulty: int
    """f, clients that may be hostile."""
    trimmed: int | None = None
    """b of the trimmed mean; f unless it is given, and never less."""
    chosen: int | None = None
    """m of Multi-Krum; n - f - 2 unless it is given, and at most n - f."""
    removed: int | None = None
    """Rows that DnC leaves out; f unless it is given, and never less."""
    radius: float | None = None
    """tau of centered clipping, parameter units."""
    iterations: int = 3
    """L of centered clipping."""
    centre: Numbers | None = None
    """First centre of centered clipping, shape (d,): public or released; zero unless it is given."""
    reference: Numbers | None = None
    """g0 of FLTrust, shape (d,)."""
    bucket_size: int = 2
    order: NDArray[np.intp] | None = None
    """Permutation of the admitted clients that fills the buckets, drawn by the caller."""
    memory: float | None = None
    """Nearest neighbours are chosen by clients' mean updates so far, in which a round counts this times the
    next one; None chooses by the present updates alone."""

    def __post_init__(self) -> None:
        whole = (self.faulty, self.trimmed, self.chosen, self.removed, self.iterations, self.bucket_size)
        if any(value is not None and (isinstance(value, bool) or value < 0) for value in whole):
            raise SettingMissing("a rule's counts are at least 0")
        if any(value is not None and not isinstance(value, int) for value in whole):
            raise SettingMissing("a rule's counts are whole numbers")
        if self.radius is not None and not 0.0 < self.radius < math.inf:  # also false for NaN
            raise SettingMissing("a radius is finite and positive")
        if self.memory is not None and not 0.0 < self.memory <= 1.0:
            raise SettingMissing("a memory is over 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An aggregate, and how it came about."""

    values: Numbers
    """Shape (d,), the updates' dtype."""
    weights: Weights | None
    """Weight of each row in it, where the rule is one weighted sum; None for rules by coordinate."""
    certificate: float | None = None
    """For the geometric median: how near it is; see `centres.Median`."""


@dataclasses.dataclass(frozen=True)
class Need:
    """A precondition on n and f."""

    text: str
    """In the field's own letters, n clients and f faulty ones."""
    holds: Callable[[int, int], bool]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table."""

    name: str
    need: Need
    apply: Callable[[Rows, Setting], Outcome]
    central: frozenset[Mixing] = frozenset()
    """Before which mixing its undivided form has a useful bound under central noise
    (engines.privacy.sensitivity); empty: only projected to the clip norm, undivided."""


_ANY = frozenset({Mixing.NONE})
_MAJORITY = Need("n > 2f", lambda n, f: n > 2 * f)
_KRUM = Need("n >= 2f + 3", lambda n, f: n >= 2 * f + 3)


def _mean(rows: Rows, setting: Setting) -> Outcome:
    return Outcome(weighted_mean(rows), np.full(rows.clients, 1.0 / rows.clients))


def _trimmed_mean(rows: Rows, setting: Setting) -> Outcome:
    trimmed = _at_least_faulty("trimmed", setting.trimmed, setting)
    if 2 * trimmed >= rows.clients:
        raise TooFewClients(f"trimming {trimmed} at either end of n = {rows.clients} leaves nothing")
    return Outcome(coordinates.trimmed_mean(rows, trimmed=trimmed), None)


def _median(rows: Rows, setting: Setting) -> Outcome:
    return Outcome(coordinates.median(rows), None)


def _meamed(rows: Rows, setting: Setting) -> Outcome:
    return Outcome(coordinates.mean_around_median(rows, kept=rows.clients - setting.faulty), None)


def _krum(rows: Rows, setting: Setting) -> Outcome:
    order = selection.krum_order(squared_distances(gram(rows)), faulty=setting.faulty)
    return _mean_of(rows, order[:1].tolist())


def _multi_krum(rows: Rows, setting: Setting) -> Outcome:
    most = rows.clients - setting.faulty
    chosen = most - 2 if setting.chosen is None else setting.chosen
    if not 1 <= chosen <= most:
        raise SettingMissing(f"multi_krum chooses 1 to n - f = {most} clients, not {chosen}")
    order = selection.krum_order(squared_distances(gram(rows)), faulty=setting.faulty)
    return _mean_of(rows, sorted(order[:chosen].tolist()))


def _bulyan(rows: Rows, setting: Setting) -> Outcome:
    chosen = selection.bulyan_selection(squared_distances(gram(rows)), faulty=setting.faulty)
    left = Scaled(rows, chosen, np.ones(len(chosen)))
    kept = len(chosen) - 2 * setting.faulty
    return Outcome(coordinates.mean_around_median(left, kept=kept), None)


def _mda(rows: Rows, setting: Setting) -> Outcome:
    if setting.faulty > selection.MOST_REMOVED_BY_MDA:
        raise SettingMissing(f"mda searches for at most f = {selection.MOST_REMOVED_BY_MDA}")
    return _mean_of(rows, selection.smallest_diameter(squared_distances(gram(rows)), faulty=setting.faulty))


def _dnc(rows: Rows, setting: Setting) -> Outcome:
    removed = _at_least_faulty("removed", setting.removed, setting)
    if removed >= rows.clients:
        raise TooFewClients(f"removing {removed} of n = {rows.clients} leaves nothing")
    return _mean_of(rows, selection.divide_and_conquer(gram(rows), removed=removed))


def _geometric_median(rows: Rows, setting: Setting) -> Outcome:
    found = geometric_median(gram(rows))
    return Outcome(weighted_sum(rows, found.weights), found.weights, found.certificate)


def _centered_clipping(rows: Rows, setting: Setting) -> Outcome:
    if setting.radius is None:
        raise SettingMissing("centered_clipping needs a radius")
    if not 1 <= setting.iterations <= 1000:
        raise SettingMissing("centered_clipping takes 1 to 1,000 iterations")
    centre = np.zeros(rows.dimension, rows.dtype) if setting.centre is None else setting.centre
    anchored = Anchored(rows, centre)
    weights = centered_clipping(gram(anchored), radius=setting.radius, iterations=setting.iterations)
    return Outcome(weighted_sum(anchored, weights), weights[:-1])


def _fltrust(rows: Rows, setting: Setting) -> Outcome:
    """Divide by the sum of trusts, as the paper does; nobody trusted is no movement."""
    if setting.reference is None:
        raise SettingMissing("fltrust needs a reference")
    total, trust = trusted_sum(rows, setting.reference)
    divisor = float(trust.sum()) or 1.0
    return Outcome((total.astype(np.float64) / divisor).astype(rows.dtype), None)


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("mean", Need("f = 0", lambda n, f: n >= 1 and f == 0), _mean, _ANY),
        Rule("trimmed_mean", _MAJORITY, _trimmed_mean, frozenset(Mixing)),
        Rule("median", _MAJORITY, _median),
        Rule("meamed", _MAJORITY, _meamed),
        Rule("krum", _KRUM, _krum),
        Rule("multi_krum", _KRUM, _multi_krum),
        Rule("bulyan", Need("n >= 4f + 3", lambda n, f: n >= 4 * f + 3), _bulyan),
        Rule("mda", _MAJORITY, _mda),
        Rule("dnc", _MAJORITY, _dnc),
        Rule("geometric_median", _MAJORITY, _geometric_median),
        Rule(
            "centered_clipping", Need("f <= 0.15 n", lambda n, f: 20 * f <= 3 * n), _centered_clipping, _ANY
        ),
        Rule("fltrust", Need("n > f", lambda n, f: n > f), _fltrust, _ANY),
    )
}
DEFAULT_MIXING, DEFAULT_RULE = Mixing.NEAREST, "trimmed_mean"


def require_clients(rule: str, *, clients: int, setting: Setting, mixing: Mixing) -> None:
    """Refuse a rule, or the mixing before it, for too few clients.

    Raises:
        TooFewClients: n against f is not what the rule needs; the text says what is.
        SettingMissing: there is no such rule, or buckets that are none.
    """
    if rule not in RULES:
        raise SettingMissing(f"{rule} is no rule; there are {', '.join(sorted(RULES))}")
    need, faulty, seen = RULES[rule].need, setting.faulty, clients
    if mixing is Mixing.BUCKETS:
        if not 1 <= setting.bucket_size <= max(clients, 1):
            raise SettingMissing(f"a bucket holds 1 to n = {clients} clients, not {setting.bucket_size}")
        seen = -(-clients // setting.bucket_size)
    if mixing is not Mixing.NONE and not _MAJORITY.holds(seen, faulty):
        raise TooFewClients(f"{mixing} needs {_MAJORITY.text}: there are n = {seen} vectors and f = {faulty}")
    if not need.holds(seen, faulty):
        raise TooFewClients(f"{rule} needs {need.text}: there are n = {seen} vectors and f = {faulty}")


def aggregate(
    rows: Rows,
    setting: Setting,
    *,
    rule: str = DEFAULT_RULE,
    mixing: Mixing = DEFAULT_MIXING,
    clip_norm: float | None = None,
) -> tuple[Outcome, Admission]:
    """Check, clip, mix and aggregate.

    Args:
        rows: n updates in the order of client ids, d floating values each.
        setting: what the rule is told.
        rule: a name in `RULES`.
        mixing: what is done before it.
        clip_norm: bound on every update's L2 norm, parameter units; None leaves lengths alone.
    Returns:
        The aggregate, its weights over the admitted clients, and who was admitted.
    Raises:
        TooFewClients: the admitted clients are too few for f.
        SettingMissing: a setting that the rule needs is missing or out of range.
        NoneFinite: nobody was admitted.
        NotConverged: see `geometric_median`.
    """
    admission = admit(rows, clip_norm=clip_norm)
    return merge(admission.rows, setting, rule=rule, mixing=mixing), admission


def merge(
    rows: Rows,
    setting: Setting,
    *,
    rule: str,
    mixing: Mixing,
    products: Weights | None = None,
    past: Weights | None = None,
) -> Outcome:
    """Mix and aggregate updates that were admitted already.

    Args:
        rows: the admitted updates, in the order of client ids.
        setting: what the rule is told.
        rule: a name in `RULES`.
        mixing: what is done before it.
        products: the centred Gram matrix of `rows`, shape (n, n), if it is known.
        past: that of the clients' mean updates so far, these ones included: needed with `memory`.
    Returns:
        The aggregate, and its weights over `rows`.
    Raises:
        TooFewClients, SettingMissing, NotConverged: as `aggregate`.
    """
    require_clients(rule, clients=rows.clients, setting=setting, mixing=mixing)
    mixed = _mix(rows, setting, mixing, products, past)
    outcome = RULES[rule].apply(mixed, setting)
    if isinstance(mixed, Mixed) and outcome.weights is not None:
        outcome = dataclasses.replace(outcome, weights=outcome.weights @ mixed.weights)
    return outcome


def _mix(
    rows: Rows, setting: Setting, mixing: Mixing, products: Weights | None, past: Weights | None
) -> Rows:
    if mixing is Mixing.NEAREST:
        products = gram(rows) if products is None else products
        weights = nearest_neighbours(_distances(products, past, setting), faulty=setting.faulty)
        return Mixed(rows, weights, base_gram=products)
    if mixing is Mixing.BUCKETS:
        if setting.order is None or len(setting.order) != rows.clients:
            raise SettingMissing("buckets need an order of the admitted clients")
        return Mixed(rows, buckets(setting.order, size=setting.bucket_size))
    return rows


def _distances(products: Weights, past: Weights | None, setting: Setting) -> Weights:
    if setting.memory is None:
        return squared_distances(products)
    if past is None or past.shape != products.shape:
        raise SettingMissing("a memory needs what every one of these clients has sent so far")
    return remembered(products, past)


def _mean_of(rows: Rows, chosen: list[int]) -> Outcome:
    weights = np.zeros(rows.clients)
    weights[chosen] = 1.0
    return Outcome(weighted_mean(rows, weights), weights / len(chosen))


def _at_least_faulty(name: str, value: int | None, setting: Setting) -> int:
    if value is not None and value < setting.faulty:
        raise SettingMissing(f"{name} = {value} is less than f = {setting.faulty}")
    return setting.faulty if value is None else value
