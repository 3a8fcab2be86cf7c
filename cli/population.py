"""The claim of all runs on the same data: what a certificate alone tells of whether it can hold.

Its sum comes from accounts that a certificate does not carry, so it is held against the run's own claim,
which is part of it, and never computed again.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cli.documents import error, section
from cli.i18n import _

_SINCE = 4
"""The first version whose population's claim says what it is about."""


def population(privacy: dict[str, Any], *, version: Any) -> list[str]:
    """Check a population's claim against the run's own, and say what it claims."""
    claim = section(privacy, "population")
    if claim.get("claimed") is not True:
        if claim.get("claimed") is not False or "epsilon" in claim:
            _refuse("claimed")
        return [_("all runs on the same data: nothing is claimed ({why})", why=str(claim.get("statement")))]
    if not isinstance(version, int) or version < _SINCE:
        return [
            _(
                "all runs on the same data: epsilon {epsilon} of version {version} names no unit, relation "
                "or adversary, and is not taken for a claim",
                epsilon=claim.get("epsilon"),
                version=version,
            )
        ]
    _require_shared(privacy, claim)
    _require_sum(section(privacy, "this_run"), claim)
    return [
        _(
            "all runs on the same data: epsilon {epsilon} at delta {delta} for one {unit} under {relation}, "
            "trusts {trusts}; fits this run's claim, not computed again",
            epsilon=claim["epsilon"],
            delta=claim["delta"],
            unit=claim["unit"],
            relation=claim["relation"],
            trusts=", ".join(claim["trusts"]),
        )
    ]


def _require_shared(privacy: dict[str, Any], claim: dict[str, Any]) -> None:
    """Refuse terms that this run's own do not imply, trusts without its own, and a missing adversary."""
    from app.budget.joint import TRUSTS, Terms

    own = Terms(str(privacy.get("unit")), str(privacy.get("relation")))
    stated = Terms(str(claim.get("unit")), str(claim.get("relation")))
    if not own.implies(stated):
        _refuse("relation" if own.unit == stated.unit else "unit")
    trusts = claim.get("trusts")
    if not isinstance(trusts, list) or [one for one in TRUSTS if one in trusts] != trusts:
        _refuse("trusts")
    if privacy.get("trust") not in trusts:
        _refuse("trusts")
    if not isinstance(claim.get("adversary"), str) or not claim["adversary"]:
        _refuse("adversary")


def _require_sum(this_run: dict[str, Any], claim: dict[str, Any]) -> None:
    """Refuse a sum that is below this run's own part of it; a divergence at one order is another measure."""
    for name in ("epsilon", "delta"):
        value, own = claim.get(name), this_run.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            _refuse(name)
        if claim.get("account_kind") == "basic" and not (isinstance(own, int | float) and value >= own):
            _refuse(name)


def _refuse(member: str) -> NoReturn:
    raise error("population_differs", _("the {member} of all runs together does not follow", member=member))
