"""The audit that a certificate carries: recomputed from its own numbers, and never taken for a bound."""

from __future__ import annotations

import math
from typing import Any

from cli.documents import error, section
from cli.i18n import _

_WITHIN = 1e-6


def audited(privacy: dict[str, Any]) -> list[str]:
    """Compute a certificate's audit again, if it has one, and say what it found."""
    if privacy.get("audit") is None:
        return []
    from engines.privacy.audit_report import first_contradiction, report_from

    try:
        report = report_from(section(section(privacy, "audit"), "report"))
        changed = first_contradiction(report) or _of_another_claim(privacy, report)
    except ValueError as failure:
        raise error(
            "audit_differs", _("the certificate's audit is not readable: {why}"), why=str(failure)
        ) from failure
    if changed is not None:
        raise error("audit_differs", _("the audit's {member} is not what the rest gives"), member=changed)
    if report.refuted:
        raise error(
            "audit_refutes",
            _("the audit refutes the mechanism: its lower bound {bound} is over the claimed {claimed}"),
            bound=f"{report.lower_bound:.3f}",
            claimed=f"{report.claimed_epsilon:.3f}",
        )
    return [
        _(
            "audit of one noised sum, priced at {claimed}: estimate {estimate} (no bound), lower bound "
            "{bound} at confidence {confidence}; it does not refute, which proves nothing",
            claimed=f"{report.claimed_epsilon:.3f}",
            estimate=f"{report.estimate:.3f}",
            bound=f"{report.lower_bound:.3f}",
            confidence=f"{report.confidence:g}",
        )
    ]


def _of_another_claim(privacy: dict[str, Any], report: Any) -> str | None:
    """The report's member that is not of one sum with the certificate's own noise, or None."""
    from engines.privacy.accounting import AccountingFailed, GaussianRun, Relation, epsilon_pld

    multiplier, delta = privacy.get("noise_multiplier"), section(privacy, "this_run").get("delta")
    if not isinstance(multiplier, float | int) or report.claimed_delta != delta:
        return "claimed_delta"
    once = GaussianRun(noise_multiplier=multiplier, sampling_rate=1.0, steps=1, relation=Relation.ZERO_OUT)
    try:
        price = epsilon_pld([once], delta=report.claimed_delta)
    except AccountingFailed as failure:
        raise ValueError(str(failure)) from failure
    return None if math.isclose(price, report.claimed_epsilon, rel_tol=_WITHIN) else "claimed_epsilon"
