"""`dpfl verify-certificate` and `dpfl verify-release`: what a certificate says, computed again offline.

Nothing that lies beside the certificate is believed. The first thing that does not hold ends the check with
its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import typer

from cli.audited import audited
from cli.binding import bound
from cli.documents import CERTIFICATE, error, parsed, read, section
from cli.i18n import _
from cli.population import population
from cli.reporting import one_line_errors, quiet_libraries

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", help=_("The issuer's published keys, a file or their address; else no signature is checked.")
    ),
]
PreviousOption = Annotated[
    Path | None, typer.Option("--previous", help=_("The certificate that the run issued before this one."))
]
HeadsOption = Annotated[
    Path | None,
    typer.Option("--heads", help=_("Head hashes of the accounts that pay: a JSON list, by account id.")),
]


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What reading a number out of a certificate may raise, whatever stands there instead."""


def verify_certificate(
    file: Annotated[Path, typer.Argument(help=_("The certificate, a JSON file."))],
    key: KeyOption = None,
    previous: PreviousOption = None,
    heads: HeadsOption = None,
) -> None:
    """Check a certificate's signature, chain and ledger, and compute its epsilon from its own parameters."""
    quiet_libraries()
    with one_line_errors():
        certificate = read(file)
        for line in _checked(certificate, key, previous, heads):
            print(line)


def verify_release(
    folder: Annotated[Path, typer.Argument(help=_("A folder that `dpfl release pull` wrote."))],
    key: KeyOption = None,
    previous: PreviousOption = None,
    heads: HeadsOption = None,
) -> None:
    """Check that adapter, configuration and base model are those of the certificate, and the certificate."""
    quiet_libraries()
    with one_line_errors():
        certificate = read(folder / CERTIFICATE)
        for line in _checked(certificate, key, previous, heads):
            print(line)
        for line in bound(folder, certificate):
            print(line)


def _checked(
    certificate: dict[str, Any], key: str | None, previous: Path | None, heads: Path | None
) -> list[str]:
    """Everything that the certificate alone tells; the epsilon comes last, since it takes longest."""
    lines = [_signature(certificate, key)]
    lines += _chain(certificate, previous) + _ledger(certificate, heads)
    privacy = section(certificate, "privacy")
    if privacy.get("claimed") is not True:
        return [*lines, _("privacy: nothing is claimed ({why})", why=str(privacy.get("statement")))]
    release = section(certificate, "release")
    _require_whole_schedule(privacy, release)
    _require_planned_rounds(release)
    _require_pool(privacy, clients=release.get("clients"))
    _require_clip_noise(privacy)
    together = population(privacy, version=certificate.get("version"))
    is_last = release.get("round") == release.get("rounds_planned")
    return [*lines, *_claim(privacy), *together, *audited(privacy, is_last=is_last)]


def _signature(certificate: dict[str, Any], key: str | None) -> str:
    from app.releases.verify import CertificateInvalid, MemberChanged, require_unchanged, verify

    try:
        if key is None:
            require_unchanged(certificate)
            return _("signature: not checked, since no key was named (--key)")
        kid = verify(certificate, keys_at(key))
    except MemberChanged as failure:
        raise error(
            "member_changed", _("{member} of the certificate was changed"), member=failure.pointer
        ) from failure
    except CertificateInvalid as failure:
        raise error(
            "certificate_invalid", _("the certificate does not hold: {reason}"), reason=str(failure)
        ) from failure
    return _("signature of {issuer} (key {kid}): holds", issuer=certificate.get("issuer"), kid=kid)


def _chain(certificate: dict[str, Any], previous: Path | None) -> list[str]:
    from app.core.canonical import canonical_sha256

    if previous is None:
        return []
    former = read(previous)
    if section(former, "release").get("run_id") != section(certificate, "release").get("run_id"):
        raise error("chain_broken", _("the two certificates are of different runs"))
    if _is_replanned(former, certificate):
        raise error("chain_broken", _("the two certificates are of different plans, or of other canaries"))
    if certificate.get("previous") != canonical_sha256(former):
        raise error(
            "chain_broken", _("the certificate does not follow the one in {path}"), path=str(previous)
        )
    return [_("previous certificate: is the one that this one follows")]


def _is_replanned(former: dict[str, Any], certificate: dict[str, Any]) -> bool:
    """Whether two certificates of a run are of different manifests, or their claims of different canaries."""
    if former.get("manifest_sha256") != certificate.get("manifest_sha256"):
        return True
    claims = [section(one, "privacy") for one in (former, certificate)]
    stated = [(claim.get("canaries"), claim.get("canaries_commitment")) for claim in claims]
    return all(claim.get("claimed") is True for claim in claims) and stated[0] != stated[1]


def _ledger(certificate: dict[str, Any], heads: Path | None) -> list[str]:
    from app.core.canonical import canonical_sha256

    committed = section(certificate, "ledger").get("heads_sha256")
    if heads is None:
        return [_("ledger: committed to as {digest}", digest=committed)]
    if canonical_sha256(parsed(heads)) != committed:
        raise error("ledger_mismatch", _("the heads in {path} are not the certified ones"), path=str(heads))
    return [_("ledger: the accounts' heads are the certified ones")]


def _claim(privacy: dict[str, Any]) -> list[str]:
    """Price the certificate's own parameters again; no claim may be below that price."""
    from engines.privacy.accounting import AccountingFailed
    from engines.privacy.schedule import schedule_of

    this_run = section(privacy, "this_run")
    claims = {1: this_run.get("epsilon")}
    try:
        claims |= {int(silos): epsilon for silos, epsilon in privacy.get("epsilon_by_silos", {}).items()}
        if privacy.get("unit") == "person":
            claims.setdefault(int(privacy["person"]["silos"]), None)
        if this_run.get("epsilon") != claims[1]:
            raise error("claims_differ", _("the certificate claims two epsilons for one data set"))
        schedule, delta = schedule_of(privacy), this_run["delta"]
        if not _is_number(delta):
            raise TypeError("delta is no number")
        computed = {silos: _priced(schedule, silos=silos, delta=delta) for silos in claims}
    except (*_MALFORMED, AccountingFailed) as failure:
        raise error(
            "cannot_price", _("the certificate's parameters have no price: {why}"), why=str(failure)
        ) from failure
    for silos, claimed in claims.items():
        if not _is_number(claimed) or not computed[silos] <= claimed:
            raise error(
                "claim_too_small",
                _("the certificate claims epsilon {claimed}; its parameters give {computed}"),
                claimed=claimed,
                computed=f"{computed[silos]:.6f}",
            )
    return [_held(privacy, claims, delta), *_told(privacy, computed[1])]


def _require_whole_schedule(privacy: dict[str, Any], release: dict[str, Any]) -> None:
    """Refuse a claim whose steps are not those of all planned rounds, or of a buffered run's participations.

    Under `fedask` clients train in odd rounds alone, and only these have steps.
    Certificates made before `local_steps` was stated are held to a whole number of steps an update.
    """
    steps, rounds = privacy.get("steps"), release.get("rounds_planned")
    updates, each = privacy.get("participations", rounds), privacy.get("local_steps")
    if privacy.get("trust") == "central":  # where no round is a buffer
        updates, each = rounds, 1
    elif release.get("lora_method") == "fedask" and "participations" not in privacy and _is_count(rounds):
        updates = -(-rounds // 2)  # every other round trains; in no buffered run
    if not (_is_count(steps) and _is_count(rounds) and _is_count(updates)) or not (
        updates <= rounds and steps % updates == 0 and each in (None, steps // updates)
    ):
        raise error(
            "schedule_differs",
            _("the certificate prices {steps} steps, which are not those of its {rounds} rounds"),
            steps=str(steps),
            rounds=str(rounds),
        )


def _require_planned_rounds(release: dict[str, Any]) -> None:
    """Refuse a release of a round, or with a round in it, that the schedule does not have."""
    number, taken = release.get("round"), release.get("rounds_aggregated")
    if not isinstance(taken, list) or not all(_is_count(one) for one in taken):
        taken = []
    is_in_order = taken == sorted(set(taken)) and taken[-1:] == [number]
    if not is_in_order or number > release["rounds_planned"]:
        raise error(
            "schedule_differs",
            _("the certificate's release of round {number} is not made of the planned rounds up to it"),
            number=str(number),
        )


def _require_pool(privacy: dict[str, Any], *, clients: Any) -> None:
    """Refuse more clients than the price of a capped cohort holds for."""
    cohort = privacy.get("cohort")
    if privacy.get("trust") != "central" or not isinstance(cohort, dict) or cohort.get("kind") != "poisson":
        return
    most = cohort.get("n_max")
    if not (_is_count(clients) and _is_count(most) and clients <= most):
        raise error(
            "pool_differs",
            _("the run has {clients} clients; its cohort is priced for {most} at most"),
            clients=str(clients),
            most=str(most),
        )


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _require_clip_noise(privacy: dict[str, Any]) -> None:
    """Refuse a moving clip norm whose sum has less noise than was paid for, or more than there is."""
    bound = privacy.get("adaptive_clip")
    if bound is None:
        return
    from engines.privacy.adaptive_clip import AdaptiveClip

    try:
        adaptive = AdaptiveClip(
            bit_std=bound["bit_noise"],
            expected_cohort=1.0,  # moves the clip norm, not its price
            target=bound["quantile"],
            learning_rate=bound["learning_rate"],
        )
        needed = adaptive.sum_multiplier(float(privacy["noise_multiplier"]))
        holds = privacy["clip_noise_multiplier"] >= needed
    except _MALFORMED as failure:
        raise error(
            "cannot_price", _("the certificate's parameters have no price: {why}"), why=str(failure)
        ) from failure
    if not holds:
        raise error(
            "clip_noise_too_small",
            _("the certificate gives the sum {given} times the clip norm as noise; it needs {needed}"),
            given=privacy["clip_noise_multiplier"],
            needed=needed,
        )


def _held(privacy: dict[str, Any], claims: Mapping[int, Any], delta: float) -> str:
    if len(claims) == 1:
        return _("epsilon {claimed} at delta {delta}: holds", claimed=claims[1], delta=delta)
    most = max(claims)
    return _(
        "epsilon {claimed}, and {most} for one {unit} in {silos} data sets, at delta {delta}: holds",
        claimed=claims[1],
        most=claims[most],
        unit=privacy.get("unit"),
        silos=most,
        delta=delta,
    )


def _told(privacy: dict[str, Any], computed: float) -> list[str]:
    from engines.privacy.accounting import ACCOUNTANT

    return [
        _("computed again: {computed} by {accountant}", computed=f"{computed:.6f}", accountant=ACCOUNTANT),
        _(
            "unit {unit}, relation {relation}; {basis}",
            unit=privacy.get("unit"),
            relation=privacy.get("relation"),
            basis=privacy.get("basis"),
        ),
    ]


def _priced(schedule: Any, *, silos: int, delta: float) -> float:
    import dataclasses

    from engines.privacy.accounting import epsilon_pld

    return epsilon_pld([dataclasses.replace(schedule, steps=schedule.steps * silos)], delta=delta)


def keys_at(where: str) -> dict[str, Any]:
    """Read a JSON web key set from a file or an address."""
    import os
    from urllib.parse import urlsplit

    from client.session import Session, server_address
    from client.trust import Trust

    parts = urlsplit(where)
    if parts.scheme in {"http", "https"}:
        address = server_address(f"{parts.scheme}://{parts.netloc}", allow_http=False)
        with Session(address, trust=Trust(os.environ.get("DPFL_CA_FILE")), patience_s=10.0) as session:
            found = session.public("GET", parts.path).json("key set")
    else:
        found = parsed(Path(where))
    if not isinstance(found, dict):
        raise error("bad_keys", _("{where} is no key set"), where=where)
    return found
