"""Whether a manifest's privacy plan is sound: unit, trust, cohort, clip. Every refusal names the way out.

What the plan costs is not decided here but by the price job.
"""

from __future__ import annotations

from collections.abc import Collection

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.manifest import Everyone, Manifest, OptimizedCohort, PoissonCohort, Privacy

UNITS_OF = {
    "local": ("example", "person"),
    "central": ("client",),
    "none": ("example", "person", "client"),
}
"""What each trust that can be run protects; with `none` the unit is a word without a claim."""


class TrustNotAllowed(Invalid):
    """The federation's policy does not allow this trust mode."""

    code, title = "trust_not_allowed", _("This trust mode is not allowed here")
    meaning = _("The federation's policy lists the trust modes that its runs may use; this is not one.")
    remedy = _("Use one of the modes that the answer names, or have the operator allow this one.")


class TrustNotAvailable(Invalid):
    """A trust mode that is understood and cannot be run by this version."""

    code, title = "trust_not_available", _("This trust mode is not available yet")
    meaning = _("The trust mode is understood, but this version of the server cannot run it.")
    remedy = _(
        "Use trust `local`, where each client adds its noise itself, or `central`, where the server does."
    )


class SamplingNotAvailable(Invalid):
    """A cohort sampling that is understood and cannot be run by this version."""

    code, title = "sampling_not_available", _("This cohort sampling is not available here")
    meaning = _("The sampling of the cohort is understood, but it cannot be run under this trust mode.")
    remedy = _("Use kind `everyone`, or `poisson` under trust `central`.")


class UnitNotAvailable(Invalid):
    """A unit of privacy that is understood and cannot be protected under this trust."""

    code, title = "unit_not_available", _("This unit of privacy is not available here")
    meaning = _("The unit of privacy is understood, but it cannot be protected under this trust mode.")
    remedy = _("Use unit `example` or `person` under trust `local`, and unit `client` under `central`.")


class RelationUnsound(Invalid):
    """Add/remove where somebody sees how many there are."""

    code, title = "relation_unsound", _("This neighbouring relation does not hold here")
    meaning = _("Under add/remove the number of participants is a secret; here rounds and receipts show it.")
    remedy = _("Use relation `zero_out`, or `replace_one` at twice the sensitivity.")


class PrivacyIncomplete(Invalid):
    """A private run without what makes it private, or an open one with it."""

    code, title = "privacy_incomplete", _("The privacy parameters do not fit the trust mode")
    meaning = _(
        "A private run names clip_norm, delta, and epsilon or noise_multiplier; with trust `none` all four "
        "are null."
    )
    remedy = _("Give all of them, or set all of them to null with trust `none`.")


class PersonIncomplete(Invalid):
    """Unit `person` without the rule by which persons are told, or that rule with another unit."""

    code, title = "person_incomplete", _("The person's rule does not fit the unit")
    meaning = _("With unit `person` the plan says whose record is whose; with any other unit it does not.")
    remedy = _("Give `person` with unit `person`, and null with every other unit.")


class PoolTooLarge(Invalid):
    """More clients than the plan is priced for."""

    code, title = "pool_too_large", _("More clients than the plan is priced for")
    meaning = _(
        "The cohort's price holds for at most n_max clients; under the same cap more would cost more."
    )
    remedy = _("Raise n_max and the cap, and have the plan priced again, or take fewer clients.")


class CapTooSmall(Invalid):
    """A cap that a cohort would reach too often."""

    code, title = "cap_too_small", _("The cohort's cap is too small")
    meaning = _(
        "A cap has to lie five standard deviations above the expected cohort, canaries included, or at the "
        "whole pool."
    )
    remedy = _("Raise the cap to what the answer names, or lower the rate.")


class CohortQuorumUnsound(Invalid):
    """A quorum that would show how many were drawn."""

    code, title = "cohort_quorum_unsound", _("This quorum would show the cohort")
    meaning = _(
        "How many clients a Poisson cohort has is a secret, and a round that waits for some shows it."
    )
    remedy = _("Set min_updates to 0 and max_updates to the cohort's cap.")


class ClipRefused(Invalid):
    """Two clips for one update, or an adaptive one where nobody could pay for it."""

    code, title = "clip_refused", _("This clipping cannot be used here")
    meaning = _("Under `central` the mechanism itself clips; only there a clip norm may follow the clients'.")
    remedy = _("Set aggregation.clip_norm to null under `central`, and adaptive_clip to null elsewhere.")


class AuditRefused(Invalid):
    """An audit of a mechanism that is not there, or whose canaries would change what they measure."""

    code, title = "audit_refused", _("This plan cannot be audited")
    meaning = _(
        "An audit attacks the noise of a plan, and with trust `none` there is none. Under `central` its "
        "canaries take part in the rounds, and a clip norm that adapts would follow them."
    )
    remedy = _("Set privacy.audit to null, plan with a trust mode that adds noise, or fix the clip norm.")


def check_trust(manifest: Manifest, trusts: Collection[str]) -> None:
    """Refuse a trust mode that this version cannot run, or that the federation's policy does not name."""
    trust = manifest.privacy.trust
    if trust == "distributed":
        raise TrustNotAvailable(_("trust `{trust}` cannot be run yet; use `local`"), trust=trust)
    if trust not in trusts:
        raise TrustNotAllowed(
            _("trust `{trust}` is not allowed here; allowed: {allowed}"),
            trust=trust,
            allowed=", ".join(sorted(trusts)),
        )


def check_protection(manifest: Manifest, *, clients: int) -> None:
    """Refuse a privacy plan that is not sound for so many clients."""
    privacy = manifest.privacy
    _check_cohort(privacy)
    _check_numbers(privacy)
    _check_unit(privacy)
    if privacy.trust == "central":
        _check_central(manifest, clients=clients)
    elif privacy.adaptive_clip is not None:
        raise ClipRefused(_("adaptive_clip needs trust `central`"))


def _check_cohort(privacy: Privacy) -> None:
    cohort = privacy.cohort
    is_run = isinstance(cohort, Everyone) or (
        privacy.trust == "central" and not isinstance(cohort, OptimizedCohort)
    )
    if not is_run:
        raise SamplingNotAvailable(
            _("cohort sampling `{kind}` cannot be run under trust `{trust}`; use `everyone`"),
            kind=cohort.kind,
            trust=privacy.trust,
        )


def _check_numbers(privacy: Privacy) -> None:
    numbers = (privacy.clip_norm, privacy.noise_multiplier, privacy.epsilon, privacy.delta)
    if privacy.trust == "none":
        if privacy.audit is not None:
            raise AuditRefused(_("with trust `none`, privacy.audit is null"))
        if any(number is not None for number in numbers):
            raise PrivacyIncomplete(
                _("with trust `none`, clip_norm, noise_multiplier, epsilon and delta are null")
            )
        return
    if privacy.clip_norm is None or privacy.delta is None:
        raise PrivacyIncomplete(_("clip_norm and delta are missing"))
    if privacy.epsilon is None and privacy.noise_multiplier is None:
        raise PrivacyIncomplete(_("give epsilon or noise_multiplier, or both to have them compared"))
    if privacy.relation == "add_remove":
        raise RelationUnsound(_("counts are visible in this run; use relation `zero_out`"))


def _check_unit(privacy: Privacy) -> None:
    units = UNITS_OF.get(privacy.trust, ())
    if privacy.unit not in units:
        raise UnitNotAvailable(
            _("unit `{unit}` cannot be protected under trust `{trust}`; available: {available}"),
            unit=privacy.unit,
            trust=privacy.trust,
            available=", ".join(units),
        )
    if (privacy.unit == "person") != (privacy.person is not None):
        raise PersonIncomplete(_("unit `{unit}` does not fit the member `person`"), unit=privacy.unit)


def _check_central(manifest: Manifest, *, clients: int) -> None:
    cohort, quorum = manifest.privacy.cohort, manifest.quorum
    if manifest.aggregation.clip_norm is not None:
        raise ClipRefused(_("under trust `central`, aggregation.clip_norm is null"))
    if manifest.privacy.canaries and manifest.privacy.adaptive_clip is not None:
        raise AuditRefused(_("canaries would move a clip norm that follows the clients'"))
    if not isinstance(cohort, PoissonCohort):
        return
    if clients > cohort.n_max:
        raise PoolTooLarge(
            _("{clients} clients, and the plan is for {n_max} at most"), clients=clients, n_max=cohort.n_max
        )
    canaries = manifest.privacy.canaries
    if cohort.cap < cohort.least_cap(canaries):
        raise CapTooSmall(
            _("the cap is {cap}; at rate {rate} of {n_max} clients and {canaries} canaries it must be at "
              "least {least}"),
            cap=cohort.cap,
            rate=cohort.rate,
            n_max=cohort.n_max,
            canaries=canaries,
            least=cohort.least_cap(canaries),
        )  # fmt: skip
    if (quorum.min_updates, quorum.max_updates) != (0, cohort.cap):
        raise CohortQuorumUnsound(_("the quorum of a Poisson cohort is 0 to its cap, {cap}"), cap=cohort.cap)
