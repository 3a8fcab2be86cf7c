"""`dpfl client evaluate`: a release, the client's own model and one without the others, on held-out data."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.documents import ADAPTER, CERTIFICATE, MANIFEST, error, read, section
from cli.i18n import _
from cli.reporting import one_line_errors, quiet_libraries


def evaluate(
    *,
    folder: Annotated[
        Path, typer.Option("--folder", "--profile", help=_("The client's own folder, made by `enrol`."))
    ],
    release: Annotated[Path, typer.Option(help=_("A folder that `dpfl release pull` wrote."))],
    held_out: Annotated[Path, typer.Option(help=_("File of JSON lines that this client does not train on."))],
) -> None:
    """Measure a `fedsa` release here: as it is, with this client's own B, and trained without the others."""
    quiet_libraries()
    with one_line_errors():
        from client.evaluating import evaluate as evaluate_release
        from client.profile import Profile

        said = section(read(release / CERTIFICATE), "release")
        try:
            run_id, number = str(said["run_id"]), int(said["round"])
            manifest, adapter = (release / MANIFEST).read_bytes(), (release / ADAPTER).read_bytes()
        except (KeyError, TypeError, ValueError, OSError) as cause:
            raise error(
                "release_incomplete", _("{folder} holds no whole release"), folder=str(release)
            ) from cause
        if hashlib.sha256(adapter).hexdigest() != said.get("adapter_sha256"):
            raise error("adapter_mismatch", _("the adapter is not the one that the certificate names"))
        profile = Profile.open(folder)
        with profile.locked():
            found = evaluate_release(
                profile, run_id=run_id, number=number, manifest=manifest, adapter=adapter, held_out=held_out
            )
        print(
            _(
                "These figures are private data and no ledger counts them: nothing was sent, and whoever "
                "passes them on, or lets others see what was decided by them, tells of your records."
            ),
            file=sys.stderr,
        )
        print(json.dumps(found, indent=2))
