"""`dpfl doctor --client`: names what stands between a client and its server. It changes nothing.

The steps build on each other, so the first that fails is the one to mend, and none after it is tried.
"""

from __future__ import annotations

import email.utils
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cli.i18n import _
from client.asking import list_assignments
from client.errors import ClientError
from client.i18n import translate
from client.invitation import Invitation, read_invitation
from client.profile import Profile
from client.proxies import unused_variable
from client.reaching import Place, Shown, addresses_of, ask_proxy, reach, shown_certificate
from client.session import Identity, Reply, Session, problem_of, server_address
from client.trust import Trust

CLOCKS_MAY_DIFFER_S = 30
"""What servers allow by default (clock_leeway_s)."""


@dataclass(frozen=True)
class Patient:
    """Whose way to the server is examined."""

    server: str
    trust: Trust
    proxy: str | None
    profile: Profile | None = None
    invitation: Invitation | None = None

    def session(self) -> Session:
        """Ask once, patiently never."""
        who = self.profile
        identity = None if who is None else Identity(who.config.client_id, who.key())
        return Session(self.server, identity=identity, trust=self.trust, proxy=self.proxy, patience_s=0.0)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    holds: bool
    step: str
    line: str


def examine_client(path: Path, *, proxy: str | None, extra_ca_file: Path | None) -> bool:
    """Print what is found on the way to a client's server, and say whether all holds.

    Args:
        path: an enrolled client's folder, or an invitation's file.
        proxy: for an invitation: through which proxy.
        extra_ca_file: for an invitation: certificates to trust besides its own.
    """
    everything = True
    try:
        for finding in _findings(_patient(path, proxy, extra_ca_file)):
            print(f"{'ok' if finding.holds else '!!'}  {finding.step}: {finding.line}", flush=True)
            if not finding.holds:
                everything = False
                break
    except ClientError as error:
        everything = False
        print(f"!!  [{error.code}] {translate(error.message, **error.members)}")
    print(_("All is well.") if everything else _("Mend that, then ask again."))
    return everything


def _patient(path: Path, proxy: str | None, extra_ca_file: Path | None) -> Patient:
    if path.is_dir():
        profile = Profile.open(path)
        config = profile.config
        if config.hands_over:
            raise ClientError("trains_only", _("{path} only trains and never connects"), path=str(path))
        return Patient(config.server, config.trust, config.proxy, profile=profile)
    invitation = read_invitation(path)
    extra = str(extra_ca_file) if extra_ca_file else None
    trust = Trust(None, extra, tuple(invitation.pins), invitation.ca)
    server = server_address(invitation.server, allow_http=False)  # the token is sent there
    return Patient(server, trust, proxy, invitation=invitation)


def _findings(patient: Patient) -> Iterator[Finding]:
    yield _names(patient)
    yield _port(patient)
    if patient.proxy is not None:
        yield _proxy(patient)
    with patient.session() as session:
        try:
            reply = session.public("GET", "/healthz")
        except ClientError as error:
            yield from _not_trusted(patient, error)
            return
        yield from _trusted(patient, session.server_key)
        yield _clock(reply)
        yield _admission(patient, session)
        if patient.profile is not None:
            yield _signature(patient, session)


def _next_hop(patient: Patient) -> Place:
    return Place.of(patient.proxy or patient.server)


def _names(patient: Patient) -> Finding:
    place = _next_hop(patient)
    try:
        addresses = ", ".join(addresses_of(place)[:4])
    except (OSError, UnicodeError):
        line = _(
            "{host} has no address here: check its spelling, the network and the machine's name servers",
            host=place.host,
        )
        return Finding(False, "DNS", line)
    return Finding(True, "DNS", _("{host} is {addresses}", host=place.host, addresses=addresses))


def _port(patient: Patient) -> Finding:
    place, step = _next_hop(patient), _("port")
    try:
        reach(place).close()
    except OSError as error:
        variable = None if patient.proxy else unused_variable()
        if variable is not None:
            line = _(
                "{place} cannot be reached ({reason}); {variable} is set and not used: enrol with "
                "--use-environment-proxy or --proxy",
                place=place,
                reason=error.strerror or type(error).__name__,
                variable=variable,
            )
        else:
            line = _(
                "{place} cannot be reached ({reason}): is it up, and do firewalls let this machine out?",
                place=place,
                reason=error.strerror or type(error).__name__,
            )
        return Finding(False, step, line)
    return Finding(True, step, _("{place} takes connections", place=place))


def _proxy(patient: Patient) -> Finding:
    proxy, target, step = patient.proxy or "", Place.of(patient.server), _("proxy")
    if not proxy.startswith("http:"):
        return Finding(True, step, _("{place} speaks TLS itself; seen below", place=Place.of(proxy)))
    try:
        with reach(Place.of(proxy)) as connection:
            status = ask_proxy(connection, proxy, target)
    except OSError as error:
        status = error.strerror or type(error).__name__
    if status.startswith("2"):
        return Finding(
            True, step, _("{place} lets us through to {target}", place=Place.of(proxy), target=target)
        )
    if status == "407":
        line = _("{place} wants an account: http://NAME:PASSWORD@HOST:PORT", place=Place.of(proxy))
    else:
        line = _(
            "{place} does not let us through to {target} ({status}): ask whoever runs it to allow that",
            place=Place.of(proxy),
            target=target,
            status=status,
        )
    return Finding(False, step, line)


def _trusted(patient: Patient, key: tuple[str, str] | None) -> Iterator[Finding]:
    if key is None:
        yield Finding(True, "TLS", _("none: {server} is spoken to in clear text", server=patient.server))
        return
    yield Finding(True, "TLS", _("the certificate holds, issued by {issuer}", issuer=key[1]))
    is_pinned = bool(patient.trust.pins)
    line = _("the server's key is a pinned one") if is_pinned else _("none: certificates alone decide")
    yield Finding(True, _("pin"), line)


def _not_trusted(patient: Patient, error: ClientError) -> Iterator[Finding]:
    if error.code == "pin_mismatch":
        yield Finding(True, "TLS", _("the certificate holds, issued by {issuer}", **error.members))
        line = _(
            "the key shown is {pin}, its certificate issued by {issuer}. Where that is your own office or a "
            "security product, a proxy opens TLS on the way: have it leave {host} alone. Otherwise ask the "
            "federation whether its key is new, then use `dpfl client pins --replace`",
            host=Place.of(patient.server).host,
            **error.members,
        )
        yield Finding(False, _("pin"), line)
        return
    if error.code == "certificate_refused":
        try:
            shown = shown_certificate(patient.server, patient.proxy)
        except OSError:
            shown = None
        if shown is not None:
            yield Finding(False, "TLS", _refused(patient, shown, reason=str(error.members["reason"])))
            return
    yield Finding(False, "TLS", translate(error.message, **error.members))


def _refused(patient: Patient, shown: Shown, *, reason: str) -> str:
    """Why a certificate was refused, and what to do about it."""
    now, host = datetime.now(UTC), Place.of(patient.server).host
    if not shown.begins <= now <= shown.ends:
        return _(
            "the certificate (issued by {issuer}) is good from {begins} to {ends}, and this machine's clock "
            "says {now}: set the clock, or ask the federation for a certificate that holds",
            issuer=shown.issuer,
            begins=_time(shown.begins),
            ends=_time(shown.ends),
            now=_time(now),
        )
    return _(
        "the certificate is refused ({reason}); it is issued by {issuer}. Where that is your own office or a "
        "security product, a proxy opens TLS on the way: have it leave {host} alone. Otherwise this is not "
        "the server that {host} stands for: ask the federation",
        reason=reason,
        issuer=shown.issuer,
        host=host,
    )


def _clock(reply: Reply) -> Finding:
    step, now = _("clock"), datetime.now(UTC)
    try:
        there = email.utils.parsedate_to_datetime(reply.headers.get("date", ""))
    except (TypeError, ValueError):
        return Finding(True, step, _("the server does not tell its own"))
    if abs((now - there).total_seconds()) <= CLOCKS_MAY_DIFFER_S:
        return Finding(True, step, _("as the server's"))
    line = _(
        "this machine's says {now}, the server's {there}: set the clock", now=_time(now), there=_time(there)
    )
    return Finding(False, step, line)


def _admission(patient: Patient, session: Session) -> Finding:
    """Whether the client, or the invitation, is one that the server lets in; neither is used up."""
    invitation = patient.invitation
    try:
        if invitation is None:
            session.sign_in()
            return Finding(True, _("enrolment"), _("the server gives this client a token"))
        invitation.require_fresh(datetime.now(UTC))
        reply = session.public("POST", "/v1/enrolments/check", payload={"enrolment_token": invitation.token})
        if reply.status // 100 != 2:
            raise problem_of(reply)
    except ClientError as error:
        step = _("enrolment") if invitation is None else _("token")
        return Finding(False, step, f"[{error.code}] {translate(error.message, **error.members)}")
    return Finding(
        True, _("token"), _("the invitation can be used until {time}", time=_time(invitation.expires))
    )


def _signature(patient: Patient, session: Session) -> Finding:
    try:
        list_assignments(session, wait_s=0.0)
    except ClientError as error:
        line = _(
            "the server refuses what this client signs for {server}: [{code}] {text}",
            server=patient.server,
            code=error.code,
            text=translate(error.message, **error.members),
        )
        return Finding(False, _("signature"), line)
    return Finding(True, _("signature"), _("the server takes what this client signs"))


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
