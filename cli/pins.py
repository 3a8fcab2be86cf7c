"""`dpfl client pins`: which public keys a client takes for its server's."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.enrol import FolderOption
from cli.i18n import _
from cli.reporting import one_line_errors


def pins(
    folder: FolderOption,
    replace: Annotated[
        list[str] | None,
        typer.Option("--replace", help=_("Take this key instead of all others; repeat it for the next one.")),
    ] = None,
) -> None:
    """Show the pinned keys of a client's server, or put others in their place."""
    with one_line_errors():
        from client.profile import Profile

        profile = Profile.open(folder)
        if replace:
            with profile.locked():
                profile = profile.pin(tuple(replace))
        for pin in profile.config.trust.pins:
            print(pin)
        if not profile.config.pins:
            print(_("no key is pinned: certificates alone decide"))
