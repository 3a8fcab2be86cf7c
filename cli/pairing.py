"""`dpfl client card`, `attach` and `ledger-moved`: a client on two machines, and a ledger that moves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.i18n import _
from cli.reporting import one_line_errors

if TYPE_CHECKING:
    from client.profile import Profile

_Folder = Annotated[
    Path, typer.Option("--folder", "--profile", help=_("The client's own folder, made by `enrol`."))
]


def card(folder: _Folder, to: Annotated[Path, typer.Option(help=_("File to write."))]) -> None:
    """Write the card by which another machine can train for this client."""
    with one_line_errors():
        from client.pairing import write_card
        from client.profile import Profile

        write_card(Profile.open(folder), to)
        print(_("card: {path}; it holds no key", path=to))


def attach(
    *,
    card_file: Annotated[Path, typer.Option("--card", help=_("The card that the other machine wrote."))],
    data: Annotated[Path, typer.Option(help=_("File of JSON lines to train on."))],
    folder: Annotated[
        Path, typer.Option("--folder", "--profile", help=_("Folder to make, for this machine's part."))
    ],
    ledgers: Annotated[Path | None, typer.Option(help=_("Where the data sets' ledgers are kept."))] = None,
    base_model: Annotated[
        list[str] | None, typer.Option(help=_("NAME=FOLDER of a base model that is in no package."))
    ] = None,
) -> None:
    """Train here for a client that is enrolled on another machine, by its card."""
    with one_line_errors():
        from client.pairing import Attachment
        from client.pairing import attach as attach_client

        wish = Attachment(
            card=card_file,
            folder=folder,
            data=data,
            base_model_folders=folders_of(base_model or []),
            home=ledgers,
        )
        profile = attach_client(wish)
        print(
            _(
                "trains for client {client} on the data set {name}",
                client=profile.config.client_id,
                name=profile.config.dataset,
            )
        )
        print(_terms(profile))


def _terms(profile: Profile) -> str:
    """What the card binds the data here to."""
    policy = profile.policy
    return _(
        "terms, from the card: epsilon {epsilon} at delta {delta} in total, trusts {trusts}, units "
        "{units}; they bind your data, so read {path} before you train",
        epsilon=f"{policy.epsilon:g}",
        delta=f"{policy.delta:g}",
        trusts=", ".join(policy.trusts),
        units=", ".join(policy.units),
        path=profile.ledger.folder / "policy.toml",
    )


def ledger_moved(
    folder: _Folder,
    old_is_gone: Annotated[
        bool, typer.Option("--old-is-gone", help=_("Confirm it here instead of being asked."))
    ] = False,
) -> None:
    """Say that the ledger was moved here and none is left where it was."""
    with one_line_errors():
        from client.profile import Profile

        ledger = Profile.open(folder).ledger
        question = _(
            "Is there no other copy of {path} that anybody could still use? Two copies would spend twice.",
            path=ledger.folder,
        )
        if not old_is_gone:
            typer.confirm(question, abort=True)
        ledger.rebind()
        print(_("the ledger in {path} is bound to this place", path=ledger.folder))


def folders_of(pairs: list[str]) -> dict[str, str]:
    """Read NAME=FOLDER options."""
    from client.errors import ClientError

    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise ClientError("bad_option", _("--base-model wants NAME=FOLDER"))
        found[name] = str(Path(folder).expanduser().resolve())
    return found
