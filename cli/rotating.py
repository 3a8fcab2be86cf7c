"""`dpfl client rotate-key`: another key for a training client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.access import client_session
from cli.i18n import _
from cli.reporting import one_line_errors


def rotate_key(
    folder: Annotated[
        Path, typer.Option("--folder", "--profile", help=_("The client's own folder, made by `enrol`."))
    ],
    overlap_s: Annotated[
        int,
        typer.Option(
            "--overlap",
            min=0,
            max=7 * 86_400,
            help=_("Seconds for which the present key works on; 0 if it has leaked."),
        ),
    ] = 3600,
) -> None:
    """Give this client a new key, vouched for by its present one."""
    with one_line_errors():
        from client.profile import Profile
        from client.rotating import rotate_key as rotate

        profile = Profile.open(folder)
        with profile.locked():
            rotate(profile, lambda key: client_session(profile, key), overlap_s=overlap_s)
        print(_("{path}: the new key signs from now on", path=folder))
