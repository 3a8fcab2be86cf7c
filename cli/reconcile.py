"""`dpfl reconcile`: the client's durable ledger against the server's mirror, as the client itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.access import client_session
from cli.i18n import _
from cli.reporting import one_line_errors, quiet_libraries

if TYPE_CHECKING:
    from client.reconciling import Comparison, MirroredAccount, MirroredEntry
    from client.session import Session


def reconcile(
    folder: Annotated[Path, typer.Option("--folder", "--profile", help=_("The client's own folder."))],
) -> None:
    """Compare both ledgers and name the first entry in which they differ."""
    quiet_libraries()
    with one_line_errors():
        from client.profile import Profile
        from client.reconciling import compare

        profile = Profile.open(folder)
        with client_session(profile) as session:
            mirrors = _mirrors(session)
        if not mirrors:
            print(_("the server holds no account for this client"))
        book, (entries, head) = profile.ledger.book(), profile.ledger.head()
        print(_("own ledger: {entries} entries, head {head}", entries=entries, head=head))
        for account, mirrored in mirrors:
            last = mirrored[-1].hash if mirrored else "-"
            print(
                _(
                    "mirror {id}: {entries} entries, head {head}",
                    id=account.id,
                    entries=len(mirrored),
                    head=last,
                )
            )
            _tell(compare(book, account, mirrored, server=profile.config.server))


def _tell(found: Comparison) -> None:
    from client.errors import ClientError
    from client.i18n import translate

    if found.pending:
        print(_("not fetched yet: {runs}", runs=", ".join(found.pending)))
    if found.never_drawn:
        print(
            _(
                "{rounds} round(s) charged in runs that this client never joined: harmless, since under "
                "central trust every client is charged, drawn or not",
                rounds=found.never_drawn,
            )
        )
    if found.first is not None:
        raise ClientError(
            found.first.code,
            _("the ledgers first differ at {where}: {why}"),
            where=found.first.where,
            why=translate(found.first.text),
        )
    print(_("the ledgers agree"))


def _mirrors(session: Session) -> list[tuple[MirroredAccount, list[MirroredEntry]]]:
    """Every account of this client with its entries; each account is read before its entries."""
    from cli.answers import every
    from client.reconciling import MirroredAccount, MirroredEntry
    from client.wire import parse

    accounts = [parse(MirroredAccount, one, what="account") for one in every(session, "/v1/budgets")]
    return [
        (
            account,
            [
                parse(MirroredEntry, one, what="entry")
                for one in every(session, f"/v1/budgets/{account.id}/entries")
            ],
        )
        for account in accounts
    ]
