"""`dpfl release`: list, pull and verify published adapters. Verifying trusts the issuer's keys alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cli.access import KeyFileOption, ProfileOption, ServerOption, open_session
from cli.i18n import _
from cli.reporting import one_line_errors, quiet_libraries

if TYPE_CHECKING:
    from client.errors import ClientError
    from client.session import Session

app = typer.Typer(name="release", help=_("List, pull and verify published adapters."), no_args_is_help=True)

ADAPTER, CONFIG, CERTIFICATE = "adapter_model.safetensors", "adapter_config.json", "certificate.json"
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
        from client.wire import Release, parse

        query = {"limit": "100"} | ({"run_id": run_id} if run_id else {})
        with open_session(server, key_file, profile) as session:
            items = session.get("/v1/releases", query=query).json("list of releases")["items"]
        for item in items:
            one = parse(Release, item, what="release")
            claim = _("no privacy claim")
            if one.privacy_claimed:
                claim = _("epsilon {epsilon} at delta {delta}", epsilon=one.epsilon, delta=one.delta)
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


@app.command(
    help=_("Check a pulled release: its digest, its certificate's signature, and its epsilon again.")
)
def verify(
    folder: Annotated[Path, typer.Argument(help=_("A folder that `dpfl release pull` wrote."))],
    jwks: Annotated[
        str, typer.Option("--jwks", help=_("The issuer's published keys: a file, or their address."))
    ],
) -> None:
    """Check a release without believing anything that lies in its folder."""
    quiet_libraries()
    with one_line_errors():
        for line in verify_release(folder, _keys(jwks)):
            print(line)


def pull_release(session: Session, release_id: UUID, to: Path) -> None:
    """Download the three files of a release; raises ClientError when the adapter is not the listed one."""
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


def verify_release(folder: Path, jwks: dict[str, Any]) -> list[str]:
    """Check digest, signature and epsilon; return what was found, or raise ClientError at the first fault."""
    from app.releases.verify import CertificateInvalid
    from app.releases.verify import verify as verify_signature
    from client.durable import read_text
    from client.profile import file_sha256
    from client.wire import read_json

    certificate = read_json(read_text(folder / CERTIFICATE).encode(), what=CERTIFICATE)
    try:
        kid = verify_signature(certificate, jwks)
    except CertificateInvalid as error:
        raise _error(
            "certificate_invalid", _("the certificate does not hold: {reason}"), reason=str(error)
        ) from error
    digest = file_sha256(folder / ADAPTER)
    if certificate["release"]["adapter_sha256"] != digest:
        raise _error(
            "adapter_mismatch", _("the adapter in {folder} is not the certified one"), folder=str(folder)
        )
    lines = [
        _("signature of {issuer} (key {kid}): holds", issuer=certificate["issuer"], kid=kid),
        _("adapter {digest}: is the certified one", digest=digest),
    ]
    return lines + _check_claim(certificate["privacy"])


def _check_claim(privacy: dict[str, Any]) -> list[str]:
    """Price the certificate's own parameters again; the claim may not be below that price."""
    if not privacy["claimed"]:
        return [_("privacy: nothing is claimed ({why})", why=privacy["statement"])]
    from engines.privacy.accounting import ACCOUNTANT, GaussianRun, Relation, epsilon_pld

    examples = privacy["examples"]
    run = GaussianRun(
        noise_multiplier=privacy["noise_multiplier"],
        sampling_rate=examples["rate"] if examples["kind"] == "poisson" else 1.0,
        steps=privacy["steps"],
        relation=Relation(privacy["relation"]),
    )
    claimed, delta = privacy["this_run"]["epsilon"], privacy["this_run"]["delta"]
    computed = epsilon_pld([run], delta=delta)
    if computed > claimed:
        raise _error(
            "claim_too_small",
            _("the certificate claims epsilon {claimed}; its parameters give {computed}"),
            claimed=claimed,
            computed=f"{computed:.6f}",
        )
    return [
        _("epsilon {claimed} at delta {delta}: holds", claimed=claimed, delta=delta),
        _("computed again: {computed} by {accountant}", computed=f"{computed:.6f}", accountant=ACCOUNTANT),
        _(
            "unit {unit}, relation {relation}; {basis}",
            unit=privacy["unit"],
            relation=privacy["relation"],
            basis=privacy["basis"],
        ),
    ]


def _keys(where: str) -> dict[str, Any]:
    """Read a JSON web key set from a file or an address."""
    from urllib.parse import urlsplit

    from client.durable import read_text
    from client.session import Session, server_address
    from client.wire import read_json

    parts = urlsplit(where)
    if parts.scheme in {"http", "https"}:
        address = server_address(f"{parts.scheme}://{parts.netloc}", allow_http=False)
        with Session(address, patience_s=10.0) as session:
            found = session.public("GET", parts.path).json("key set")
    else:
        found = read_json(read_text(Path(where)).encode(), what="key set")
    if not isinstance(found, dict):
        raise _error("bad_keys", _("{where} is no key set"), where=where)
    return found


def _error(code: str, message: str, **members: Any) -> ClientError:
    from client.errors import ClientError

    return ClientError(code, message, **members)
