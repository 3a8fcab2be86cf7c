"""`dpfl client invite`: an operator invites training clients, each by a file with all that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.access import CaFileOption, KeyFileOption, ServerOption, open_session
from cli.i18n import _
from cli.reporting import one_line_errors

if TYPE_CHECKING:
    from client.invitation import Invitation
    from client.session import Session

_HOUR_S = 3600


OrganisationOption = Annotated[
    str,
    typer.Option(
        "--organisation", "--org", help=_("Its organisation by name or id; made if none has the name.")
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help=_("File for the invitation: address, keys and token in one.")),
]
ToOption = Annotated[
    Path | None, typer.Option("--to", help=_("File for the token alone; only you may read it."))
]
RegionOption = Annotated[str, typer.Option(help=_("Where the data are."))]
JurisdictionOption = Annotated[
    str | None, typer.Option(help=_("Whose law they are under, by ISO 3166: DE, or US-CA."))
]
EpsilonOption = Annotated[float, typer.Option(help=_("What the data may spend in all runs together."))]
DeltaOption = Annotated[float, typer.Option(help=_("Its delta."))]
UnitOption = Annotated[
    str,
    typer.Option(help=_("Whom that is for, at least: one example, all of one person, or one client.")),
]
ApprovalOption = Annotated[
    str,
    typer.Option(help=_("`automatic`, or `manual`: it waits for somebody who approves it.")),
]
HoursOption = Annotated[int, typer.Option(min=1, max=720, help=_("Hours until it is over."))]
CountOption = Annotated[
    int, typer.Option(min=1, max=1000, help=_("How many; the files of several are numbered."))
]
NextPinOption = Annotated[str | None, typer.Option(help=_("Pin of the key that the server will have next."))]


def invite(
    *,
    organisation: OrganisationOption,
    out: OutOption = None,
    to: ToOption = None,
    region: RegionOption = "eu-west-1",
    jurisdiction: JurisdictionOption = None,
    epsilon: EpsilonOption = 8.0,
    delta: DeltaOption = 1e-5,
    unit: UnitOption = "example",
    expires: HoursOption = 24,
    count: CountOption = 1,
    next_pin: NextPinOption = None,
    approval: ApprovalOption = "automatic",
    ca_file: CaFileOption = None,
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Invite one training client or several, into one file each."""
    with one_line_errors():
        from client.errors import ClientError

        if (out is None) == (to is None):
            raise ClientError("bad_option", _("name a file: --out for an invitation, --to for a token alone"))
        budget = {"kind": "basic", "epsilon": epsilon, "delta": delta, "unit": unit}
        with open_session(server, key_file, ca_file=ca_file) as session:
            owner = Invited.into(
                session,
                organisation,
                region,
                expires_s=expires * _HOUR_S,
                budget=budget,
                approval=approval,
                jurisdiction=jurisdiction,
            )
            for path in numbered(out or to or Path(), count):
                if out is None:
                    owner.write_token(session, path)
                else:
                    owner.write_invitation(session, path, next_pin=next_pin)


def numbered(path: Path, count: int) -> list[Path]:
    """One file as it is named; of several, name-1.json, name-2.json, ..."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


class Invited:
    """An organisation whose machines are invited under the same terms."""

    def __init__(self, identifier: str, name: str, *, terms: dict[str, object]) -> None:
        self.id = identifier
        self.name = name
        self._terms = terms

    @classmethod
    def into(
        cls,
        session: Session,
        organisation: str,
        region: str,
        *,
        expires_s: int,
        budget: dict[str, object],
        approval: str = "automatic",
        jurisdiction: str | None = None,
    ) -> Invited:
        """Find an organisation by name or id; make it where none has the name."""
        identifier, name = organisation_of(session, organisation, region)
        terms: dict[str, object] = {
            "organisation_id": identifier,
            "region": region,
            "jurisdiction": jurisdiction,
            "budget": budget,
            "expires_in_s": expires_s,
            "approval": approval,
        }
        return cls(identifier, name, terms=terms)

    def write_token(self, session: Session, path: Path) -> None:
        """Write a token alone, for whoever names address and certificates as options."""
        from client.durable import write_whole

        token, expires_at = self._invited(session)
        write_whole(path, f"{token}\n".encode(), mode=0o600)
        line = _("{path}: for one client of {organisation}, until {time}", **self._told(path, expires_at))
        print(line)

    def write_invitation(self, session: Session, path: Path, *, next_pin: str | None) -> Invitation:
        """Write all that one machine needs, pinned to the key that the server shows to this machine."""
        from client.invitation import Invitation
        from client.trust import require_pins

        following = require_pins([next_pin] if next_pin else [])
        token, expires_at = self._invited(session)
        key = session.server_key
        made = Invitation(
            server=session.server,
            ca=session.trust.own_authority(),
            pins=list(dict.fromkeys((*((key[0],) if key else ()), *following))),
            token=token,
            expires_at=expires_at,
            organisation=self.name,
            region=str(self._terms["region"]),
        )
        made.write(path)
        print(
            _(
                "{path}: invites one client of {organisation} until {time}; a secret until it is used: give "
                "it to nobody else",
                **self._told(path, expires_at),
            )
        )
        if key is not None:
            print(_("pinned: {pin}, certificate issued by {issuer}", pin=key[0], issuer=key[1]))
        return made

    def _invited(self, session: Session) -> tuple[str, str]:
        from cli.answers import Invitation as Answer
        from client.wire import parse

        answer = session.post("/v1/enrolments", self._terms).json("enrolment")
        made = parse(Answer, answer, what="enrolment")
        return made.token, made.expires_at

    def _told(self, path: Path, expires_at: str) -> dict[str, object]:
        return {"path": path, "organisation": self.name, "time": expires_at}


def organisation_of(session: Session, named: str, region: str) -> tuple[str, str]:
    """Id and name of the organisation of this name or id; one is made where none has the name."""
    from cli.answers import Made, Organisation, every
    from client.wire import parse

    for item in every(session, "/v1/organisations"):
        one = parse(Organisation, item, what="organisation")
        if named in {one.name, str(one.id)}:
            return str(one.id), one.name
    made = session.post("/v1/organisations", {"name": named, "region": region}).json("organisation")
    return str(parse(Made, made, what="organisation").id), named
