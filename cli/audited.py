"""The audit that a certificate carries: recomputed from its own numbers, and never taken for a bound."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from cli.documents import error, section
from cli.i18n import _

if TYPE_CHECKING:
    from client.errors import ClientError

_WITHIN = 1e-6
_DIGEST = re.compile("[0-9a-f]{64}")
_OF_RUN, _OF_SUM = "sum_of_rounds", "final_iterate"
"""The statistic of a report on the run's own rounds, and of one on a sum of the code."""


def audited(privacy: dict[str, Any], *, is_last: bool) -> list[str]:
    """Compute a certificate's audit again, if it has one, and say what it found.

    `is_last` tells that no later release of the run is planned: its canaries have to be opened here.
    """
    canaries = privacy.get("canaries")
    if canaries and not _DIGEST.fullmatch(str(privacy.get("canaries_commitment"))):
        raise _differs("canaries_commitment")
    if privacy.get("audit") is None:
        return _not_yet(canaries, is_last=is_last) if canaries else []
    from engines.privacy.audit_report import first_contradiction, report_from

    try:
        audit = section(privacy, "audit")
        report = report_from(section(audit, "report"))
        changed = (
            first_contradiction(report)
            or (_of_another_run if canaries else _of_another_claim)(privacy, report)
            or _of_another_reach(audit, report)
        )
    except ValueError as failure:
        raise error(
            "audit_differs", _("the certificate's audit is not readable: {why}"), why=str(failure)
        ) from failure
    if changed is not None:
        raise _differs(changed)
    if report.refuted:
        raise error(
            "audit_refutes",
            _("the audit refutes the mechanism: its lower bound {bound} is over the claimed {claimed}"),
            bound=f"{report.lower_bound:.3f}",
            claimed=f"{report.claimed_epsilon:.3f}",
        )
    return [_told(report)]


def _differs(member: str) -> ClientError:
    return error("audit_differs", _("the audit's {member} is not what the rest gives"), member=member)


def _not_yet(canaries: Any, *, is_last: bool) -> list[str]:
    if is_last:
        raise _differs("report")
    return [_("{canaries} canaries take part in the rounds; the last release opens them", canaries=canaries)]


def _told(report: Any) -> str:
    numbers = {
        "claimed": f"{report.claimed_epsilon:.3f}",
        "estimate": f"{report.estimate:.3f}",
        "bound": f"{report.lower_bound:.3f}",
        "confidence": f"{report.confidence:g}",
        "reach": f"{report.largest_reachable:.3f}",
    }
    if report.statistic == _OF_RUN:
        return _(
            "audit of the run by {canaries} canaries in its rounds, claimed at {claimed}: estimate "
            "{estimate} (no bound), lower bound {bound} at confidence {confidence}, {reach} at most; it does "
            "not refute, which proves nothing",
            canaries=report.canaries,
            **numbers,
        )
    if _reaches(report):
        return _(
            "audit of one noised sum, priced at {claimed}: estimate {estimate} (no bound), lower bound "
            "{bound} at confidence {confidence}, {reach} at most; it does not refute, which proves nothing",
            **numbers,
        )
    return _(
        "audit of one noised sum, priced at {claimed}: estimate {estimate} (no bound); its lower bound can "
        "be {reach} at most, so it could not have refuted whatever the code does, and says nothing",
        **numbers,
    )


def _reaches(report: Any) -> bool:
    return bool(report.largest_reachable > report.claimed_epsilon)


def _of_another_reach(audit: dict[str, Any], report: Any) -> str | None:
    """The name of the reach that does not follow from the report; audits before version 4 state none."""
    stated = audit.get("can_refute", _reaches(report))
    return None if stated is _reaches(report) else "can_refute"


def _of_another_run(privacy: dict[str, Any], report: Any) -> str | None:
    """The report's member that is not of this run and the canaries that it has committed to, or None."""
    this_run = section(privacy, "this_run")
    stated = {
        "statistic": _OF_RUN,
        "canaries": privacy.get("canaries"),
        "commitment": privacy.get("canaries_commitment"),
        "claimed_epsilon": this_run.get("epsilon"),
        "claimed_delta": this_run.get("delta"),
    }
    return next((name for name, value in stated.items() if getattr(report, name) != value), None)


def _of_another_claim(privacy: dict[str, Any], report: Any) -> str | None:
    """The report's member that is not of one sum with the certificate's own noise, or None."""
    from engines.privacy.accounting import AccountingFailed
    from engines.privacy.audit_reach import claim_of_one_sum

    if report.statistic != _OF_SUM:
        return "statistic"
    multiplier, delta = privacy.get("noise_multiplier"), section(privacy, "this_run").get("delta")
    if not isinstance(multiplier, float | int) or report.claimed_delta != delta:
        return "claimed_delta"
    try:
        price = claim_of_one_sum(multiplier, delta=report.claimed_delta)
    except AccountingFailed as failure:
        raise ValueError(str(failure)) from failure
    return None if math.isclose(price, report.claimed_epsilon, rel_tol=_WITHIN) else "claimed_epsilon"
