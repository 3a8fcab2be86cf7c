"""`dpfl release`: list, pull and export published adapters; `dpfl verify-release` checks what was pulled."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cli.access import KeyFileOption, ProfileOption, ServerOption, open_session
from cli.documents import ADAPTER, CERTIFICATE, CONFIG, MANIFEST
from cli.export import export
from cli.i18n import _
from cli.reporting import one_line_errors

if TYPE_CHECKING:
    from client.errors import ClientError
    from client.session import Session
    from client.wire import Release

app = typer.Typer(name="release", help=_("List, pull and export published adapters."), no_args_is_help=True)
app.command("export", help=_("Write a release for PEFT, transformers or vLLM, with a model card."))(export)

_HEADER_BYTES = 1 << 20


@app.command("list", help=_("List published adapters, newest first."))
def list_releases(
    run_id: Annotated[str | None, typer.Option("--run", help=_("Only releases of this run."))] = None,
    server: ServerOption = None,
    key_file: KeyFileOption = None,
    profile: ProfileOption = None,
) -> None:
    """Print one line for each release."""
    with one_line_errors():
        from cli.answers import Page
        from client.wire import Release, parse

        query = {"limit": "100"} | ({"run_id": run_id} if run_id else {})
        with open_session(server, key_file, profile) as session:
            listed = session.get("/v1/releases", query=query).json("list of releases")
        for item in parse(Page, listed, what="list of releases").items:
            one = parse(Release, item, what="release")
            claim = _("no privacy claim")
            if one.privacy_claimed:
                claim = _("epsilon {epsilon} at delta {delta}", epsilon=one.epsilon, delta=one.delta)
            if one.rolled_back_at is not None:
                claim += ", " + _("rolled back")
            print(
                _(
                    "{id} run {run} round {number}: {claim}",
                    id=one.id,
                    run=one.run_id,
                    number=one.number,
                    claim=claim,
                )
            )


@app.command(help=_("Download a release as a PEFT adapter folder with its certificate."))
def pull(
    release_id: Annotated[UUID, typer.Argument(help=_("The release."))],
    to: Annotated[Path, typer.Option("--to", help=_("Folder to write."))],
    server: ServerOption = None,
    key_file: KeyFileOption = None,
    profile: ProfileOption = None,
) -> None:
    """Write the adapter, its configuration and its certificate, each checked and whole."""
    with one_line_errors():
        with open_session(server, key_file, profile) as session:
            pull_release(session, release_id, to)
        print(_("{folder}: adapter and certificate", folder=to))


def pull_release(session: Session, release_id: UUID, to: Path) -> None:
    """Download the files of a release; raises ClientError when the adapter is not the listed one.

    The run's manifest comes along: it says what the adapter's model is. A release that was rolled back is
    pulled with a warning.
    """
    from client.durable import write_whole
    from client.wire import Release, parse

    path = f"/v1/releases/{release_id}"
    release = parse(Release, session.get(path).json("release"), what="release")
    content = session.download(f"{path}/adapter", limit_bytes=release.size_bytes + _HEADER_BYTES).content
    if hashlib.sha256(content).hexdigest() != release.adapter_sha256:
        raise _error("adapter_mismatch", _("the downloaded adapter is not the one that was announced"))
    to.mkdir(parents=True, exist_ok=True)
    write_whole(to / ADAPTER, content, mode=0o644)
    for part, name in (("config", CONFIG), ("certificate", CERTIFICATE)):
        write_whole(to / name, session.get(f"{path}/{part}").content, mode=0o644)
    manifest = session.get(f"/v1/runs/{release.run_id}/manifest").content
    write_whole(to / MANIFEST, manifest, mode=0o644)
    _warn_of_rollback(release)


def _warn_of_rollback(release: Release) -> None:
    if release.rolled_back_at is None:
        return
    warning = _(
        "warning: this release was rolled back at {at}: {reason}",
        at=release.rolled_back_at.isoformat(timespec="seconds"),
        reason=" ".join((release.rollback_reason or "").split()),
    )
    print(f"dpfl: {warning}", file=sys.stderr)


def _error(code: str, message: str, **members: Any) -> ClientError:
    from client.errors import ClientError

    return ClientError(code, message, **members)
