"""Robust rules as a plan may name them: which trust allows which, and how many updates each needs.

The static copy of engines/aggregation/rules.py and permission.py, which the gateway cannot import; a contract
test holds the two against each other. What is checked here for a plan's quorum is checked again by the worker
for the updates that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.manifest import Aggregation, Manifest, PoissonCohort, RuleSettings
from app.runs.methods import METHODS

NONE, NEAREST, BUCKETS = "none", "nearest_neighbours", "buckets"
MOST_REMOVED_BY_MDA = 20
_SHARE_OF_DEFAULT = 4
"""One in so many of the quorum's updates may be hostile under the default rule."""
MEMORY = 0.9
"""Of the default rule: a round's updates count half of the present one's after six to seven rounds."""


class RuleRefused(Invalid):
    """A robust rule that the trust mode does not allow."""

    code, title = "rule_refused", _("This rule cannot be used under this trust")
    meaning = _(
        "Under `central` the server's noise must cover what one client can move, and only some rules have "
        "a useful bound; where there is only a sum, only the mean is left."
    )
    remedy = _("Use the rule that the answer names, or trust `local`, under which every rule is allowed.")


class RuleNeedsMore(Invalid):
    """Too few updates for as many hostile clients."""

    code, title = "rule_needs_more_updates", _("The rule needs more updates")
    meaning = _(
        "A rule bears f hostile clients only among enough updates, and a round may close at its quorum."
    )
    remedy = _("Raise quorum.min_updates, lower aggregation.faulty, or use a rule that needs fewer.")


class RuleSettingRefused(Invalid):
    """A rule without a setting that it needs, or with one that it does not know or cannot follow."""

    code, title = "rule_setting_refused", _("The rule's settings do not fit")
    meaning = _("A rule takes exactly its own settings: one that has no effect would be a mistake.")
    remedy = _("Give what the answer names, and leave every other setting null.")


class AggregationNotAvailable(Invalid):
    """An aggregation mode or rule that this version cannot run."""

    code, title = "aggregation_not_available", _("This aggregation is not available yet")
    meaning = _("The aggregation's mode or rule is not one that this version of the server can run.")
    remedy = _("Use mode `plain` with a rule that the answer names.")


@dataclass(frozen=True, kw_only=True)
class RuleTerms:
    """What a plan must fulfil to name a rule."""

    need: str
    """Its precondition in the field's own letters, n updates and f hostile ones."""
    holds: Callable[[int, int], bool]
    central: frozenset[str] = field(default_factory=frozenset)
    """Before which mixing central noise can usefully cover it."""
    takes: frozenset[str] = field(default_factory=frozenset)
    """The settings that it knows."""
    needs: str | None = None
    """The setting without which it cannot run."""
    is_run: bool = True


OF_MIXING = {BUCKETS: frozenset({"bucket_size"}), NEAREST: frozenset({"memory"})}
"""The settings that a mixing knows."""
_ANY, _ALL = frozenset({NONE}), frozenset({NONE, NEAREST, BUCKETS})


def _majority(n: int, f: int) -> bool:
    return n > 2 * f


def _krum(n: int, f: int) -> bool:
    return n >= 2 * f + 3


RULES: Mapping[str, RuleTerms] = {
    "mean": RuleTerms(need="f = 0", holds=lambda n, f: n >= 1 and f == 0, central=_ANY),
    "trimmed_mean": RuleTerms(need="n > 2f", holds=_majority, central=_ALL, takes=frozenset({"trimmed"})),
    "median": RuleTerms(need="n > 2f", holds=_majority),
    "meamed": RuleTerms(need="n > 2f", holds=_majority),
    "krum": RuleTerms(need="n >= 2f + 3", holds=_krum),
    "multi_krum": RuleTerms(need="n >= 2f + 3", holds=_krum, takes=frozenset({"chosen"})),
    "bulyan": RuleTerms(need="n >= 4f + 3", holds=lambda n, f: n >= 4 * f + 3),
    "mda": RuleTerms(need="n > 2f", holds=_majority),
    "dnc": RuleTerms(need="n > 2f", holds=_majority, takes=frozenset({"removed"})),
    "geometric_median": RuleTerms(need="n > 2f", holds=_majority),
    "centered_clipping": RuleTerms(
        need="f <= 0.15 n",
        holds=lambda n, f: 20 * f <= 3 * n,
        central=_ANY,
        takes=frozenset({"radius", "iterations"}),
        needs="radius",
    ),
    # Its reference update has to come from public data of the server's own, and the server holds none.
    "fltrust": RuleTerms(need="n > f", holds=lambda n, f: n > f, central=_ANY, is_run=False),
}


def is_allowed(rule: str, *, mixing: str, trust: str) -> bool:
    """Say whether a trust allows a rule after a mixing, whether or not this version can run it."""
    if trust == "distributed":
        return (rule, mixing) == ("mean", NONE)
    return trust != "central" or mixing in RULES[rule].central


def default_aggregation(
    *, trust: str, min_updates: int, method: str = "ffa", mixed_ranks: bool = False
) -> Aggregation:
    """The aggregation of a new plan: nearest-neighbour mixing, then the trimmed mean, against one in four.

    Neighbours are told by what clients have sent so far, where every round moves the same numbers.
    Where a rule has to look at products of factors, or ranks are mixed, the geometric median. Under `central`
    the plain sum: there the default's noise would be more than four times the sum's. A quorum of fewer than
    four has no client to spare.
    """
    faulty = 0 if trust == "central" else min_updates // _SHARE_OF_DEFAULT
    if METHODS[method].robust_on == "nothing":
        faulty = 0  # there is no rule but the mean
    if faulty and (mixed_ranks or METHODS[method].robust_on == "products"):
        return Aggregation(
            mode="plain", rule="geometric_median", weights="uniform", clip_norm=None, faulty=faulty
        )
    return Aggregation(
        mode="plain",
        rule="trimmed_mean" if faulty else "mean",
        weights="uniform",
        clip_norm=None,
        faulty=faulty,
        mixing="nearest_neighbours" if faulty else "none",
        settings=RuleSettings(memory=MEMORY if faulty and METHODS[method].fixed_coordinates else None),
    )


def check_rule(manifest: Manifest, *, clients: int) -> None:
    """Refuse a rule that the trust does not allow, or that a round with the fewest updates cannot carry."""
    aggregation, trust = manifest.aggregation, manifest.privacy.trust
    terms = RULES.get(aggregation.rule)
    if terms is None or not terms.is_run:
        runnable = ", ".join(sorted(name for name, one in RULES.items() if one.is_run))
        raise AggregationNotAvailable(
            _("aggregation rule `{rule}` cannot be run; there are {rules}"),
            rule=aggregation.rule,
            rules=runnable,
        )
    if not is_allowed(aggregation.rule, mixing=aggregation.mixing, trust=trust):
        raise RuleRefused(
            _("rule `{rule}` after mixing `{mixing}` has no useful bound under trust `{trust}`: use "
              "`trimmed_mean`"),
            rule=aggregation.rule,
            mixing=aggregation.mixing,
            trust=trust,
        )  # fmt: skip
    _check_settings(aggregation, terms)
    _check_memory(manifest)
    updates = manifest.quorum.min_updates
    if trust == "central":
        _check_noised(manifest)
        updates = clients  # fixed and public: who sends nothing is the zero vector
    _check_count(aggregation, terms, updates=updates)


def _check_noised(manifest: Manifest) -> None:
    """Refuse what the server cannot noise yet: it covers the sum, and the trimmed sum over all clients."""
    aggregation, privacy = manifest.aggregation, manifest.privacy
    if aggregation.rule not in {"mean", "trimmed_mean"} or aggregation.mixing != NONE:
        raise AggregationNotAvailable(
            _("rule `{rule}` after mixing `{mixing}` cannot be run under trust `central` yet; use "
              "`trimmed_mean` after `none`"),
            rule=aggregation.rule,
            mixing=aggregation.mixing,
        )  # fmt: skip
    if aggregation.rule == "mean":
        return
    if isinstance(privacy.cohort, PoissonCohort):
        raise RuleRefused(
            _("a robust rule over a cohort that a cap may cut has no proof: use `mean`, or cohort `everyone`")
        )
    if privacy.adaptive_clip is not None or privacy.audit is not None:
        raise AggregationNotAvailable(
            _("rule `{rule}` goes with neither adaptive_clip nor audit under `central` yet; use `mean`"),
            rule=aggregation.rule,
        )


def _check_settings(aggregation: Aggregation, terms: RuleTerms) -> None:
    given = {name for name, value in aggregation.settings.model_dump().items() if value is not None}
    known = terms.takes | OF_MIXING.get(aggregation.mixing, frozenset())
    for name in sorted(given - known):
        raise RuleSettingRefused(
            _("`{setting}` has no effect on rule `{rule}`"), setting=name, rule=aggregation.rule
        )
    if terms.needs is not None and terms.needs not in given:
        raise RuleSettingRefused(
            _("rule `{rule}` needs `{setting}`"), rule=aggregation.rule, setting=terms.needs
        )
    _check_sizes(aggregation)


def _check_memory(manifest: Manifest) -> None:
    if manifest.aggregation.settings.memory is None or METHODS[manifest.lora.method].fixed_coordinates:
        return
    raise RuleSettingRefused(
        _("`memory` needs updates of the same numbers in every round: set it to null, or use LoRA method "
          "{methods}"),
        methods=", ".join(f"`{name}`" for name, terms in METHODS.items() if terms.fixed_coordinates),
    )  # fmt: skip


def _check_sizes(aggregation: Aggregation) -> None:
    for name in ("trimmed", "removed"):
        value = getattr(aggregation.settings, name)
        if value is not None and value < aggregation.faulty:
            raise RuleSettingRefused(
                _("`{setting}` is less than the {faulty} clients that may be hostile"),
                setting=name,
                faulty=aggregation.faulty,
            )
    if aggregation.rule == "mda" and aggregation.faulty > MOST_REMOVED_BY_MDA:
        raise RuleSettingRefused(
            _("rule `mda` searches for at most {most} hostile clients; use `trimmed_mean`"),
            most=MOST_REMOVED_BY_MDA,
        )


def _check_count(aggregation: Aggregation, terms: RuleTerms, *, updates: int) -> None:
    """Hold n against f for the fewest updates that a round may close with."""
    size = aggregation.settings.bucket_size or 2
    seen = -(-updates // size) if aggregation.mixing == BUCKETS else updates
    for need, holds in _needs(aggregation, terms, updates=updates, seen=seen):
        if not holds:
            raise RuleNeedsMore(
                _("rule `{rule}` needs {need}; at the quorum of {updates} update(s) n is {seen} and f is "
                  "{faulty}: raise min_updates, lower faulty or use `trimmed_mean`"),
                rule=aggregation.rule,
                need=need,
                updates=updates,
                seen=seen,
                faulty=aggregation.faulty,
            )  # fmt: skip


def _needs(
    aggregation: Aggregation, terms: RuleTerms, *, updates: int, seen: int
) -> Iterator[tuple[str, bool]]:
    """Every precondition in the field's letters, and whether it holds; `seen` vectors reach the rule."""
    settings, faulty = aggregation.settings, aggregation.faulty
    yield terms.need, terms.holds(seen, faulty)
    if aggregation.mixing != NONE:
        yield "n > 2f", _majority(seen, faulty)
    if aggregation.mixing == BUCKETS:
        yield f"n >= {settings.bucket_size or 2}", updates >= (settings.bucket_size or 2)
    if settings.trimmed is not None:
        yield f"n > {2 * settings.trimmed}", seen > 2 * settings.trimmed
    if settings.removed is not None:
        yield f"n > {settings.removed}", seen > settings.removed
    if settings.chosen is not None:
        yield f"n >= f + {settings.chosen}", seen >= faulty + settings.chosen
