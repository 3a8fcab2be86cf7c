"""`dpfl client invite`: an operator makes the one-use token with which one training client may enrol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.access import KeyFileOption, ServerOption, open_session
from cli.i18n import _
from cli.reporting import one_line_errors

if TYPE_CHECKING:
    from client.session import Session


UnitOption = Annotated[
    str,
    typer.Option(help=_("Whom that is for, at least: one example, all of one person, or one client.")),
]
ApprovalOption = Annotated[
    str, typer.Option(help=_("`automatic`, or `manual`: it waits for somebody who approves it."))
]


def invite(
    *,
    organisation: Annotated[
        str, typer.Option(help=_("Its organisation; made if there is none of the name."))
    ],
    to: Annotated[Path, typer.Option("--to", help=_("File for the token; only you may read it."))],
    region: Annotated[str, typer.Option(help=_("Where the data are."))] = "eu-west-1",
    epsilon: Annotated[float, typer.Option(help=_("What the data may spend in all runs together."))] = 8.0,
    delta: Annotated[float, typer.Option(help=_("Its delta."))] = 1e-5,
    unit: UnitOption = "example",
    approval: ApprovalOption = "automatic",
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Write the token of a new invitation to a file."""
    with one_line_errors():
        from cli.answers import Invitation
        from client.durable import write_whole
        from client.wire import parse

        budget = {"kind": "basic", "epsilon": epsilon, "delta": delta, "unit": unit}
        with open_session(server, key_file) as session:
            body = {
                "organisation_id": _organisation(session, organisation, region),
                "region": region,
                "budget": budget,
                "approval": approval,
            }
            answer = session.post("/v1/enrolments", body).json("enrolment")
        made = parse(Invitation, answer, what="enrolment")
        write_whole(to, f"{made.token}\n".encode(), mode=0o600)
        print(
            _(
                "{path}: for one client of {organisation}, until {time}",
                path=to,
                organisation=organisation,
                time=made.expires_at,
            )
        )


def _organisation(session: Session, name: str, region: str) -> str:
    from cli.answers import Made, Organisation, every
    from client.wire import parse

    for item in every(session, "/v1/organisations"):
        one = parse(Organisation, item, what="organisation")
        if one.name == name:
            return str(one.id)
    made = session.post("/v1/organisations", {"name": name, "region": region}).json("organisation")
    return str(parse(Made, made, what="organisation").id)
