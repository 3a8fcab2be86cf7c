"""How a command reaches a server: with an API key from a file, or as a training client."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.i18n import _

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from client.profile import Profile
    from client.session import Session

_VISIBLE = re.compile(r"[!-~]+")
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", envvar="DPFL_SERVER", help=_("Address of the server; else the one in the key file.")
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        envvar="DPFL_KEY_FILE",
        help=_("File with an API key: the key alone, or admin.json of `dpfl up`."),
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        envvar="DPFL_CA_FILE",
        help=_("Certificates of the server's own authority, instead of the system's."),
    ),
]
ProfileOption = Annotated[
    Path | None, typer.Option("--folder", "--profile", help=_("A client's own folder, instead of a key."))
]


def open_session(
    server: str | None, key_file: Path | None, profile: Path | None = None, *, ca_file: Path | None = None
) -> Session:
    """Open a session as whom the options name; the authority is DPFL_CA_FILE's where none is named."""
    from client.errors import ClientError
    from client.profile import Profile
    from client.session import Session, server_address
    from client.trust import Trust

    if profile is not None:
        return client_session(Profile.open(profile))
    if key_file is None:
        raise ClientError("no_credentials", _("name a file with an API key: --key-file"))
    url, key, beside = _read_key(key_file)
    named = os.environ.get("DPFL_CA_FILE") or beside
    trust = Trust(str(ca_file) if ca_file else named)
    address = server or url
    if address is None:
        raise ClientError("no_server", _("name the server: --server"))
    allow_http = os.environ.get("DPFL_ALLOW_HTTP") == "1"
    address = server_address(address, allow_http=allow_http)
    return Session(address, bearer=key, trust=trust, patience_s=30.0)


def client_session(profile: Profile, key: Ed25519PrivateKey | None = None) -> Session:
    """Open a session as a training client, with its own key unless another is given."""
    from client.errors import ClientError
    from client.session import Identity, Session

    config = profile.config
    if config.hands_over:
        raise ClientError(
            "trains_only",
            _("{path} only trains: fetch and submit on the machine where {name} is enrolled"),
            path=str(profile.folder),
            name=config.name,
        )
    return Session(
        config.server,
        identity=Identity(config.client_id, key or profile.key()),
        trust=config.trust,
        proxy=config.proxy,
        patience_s=_patience_s(),
    )


def _patience_s() -> float:
    """How long a client asks a server that does not answer, in seconds."""
    from client.errors import ClientError

    found = os.environ.get("DPFL_PATIENCE_S", "300")
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", found):
        raise ClientError(
            "setting_invalid",
            _("DPFL_PATIENCE_S is a number of seconds, 0 to 99999; here it is {found}"),
            found=found,
        )
    return float(found)


def _read_key(path: Path) -> tuple[str | None, str, str | None]:
    """Address, key and file of certificates; a key alone says neither of the others."""
    from client.durable import read_text
    from client.errors import ClientError

    text = read_text(path).strip()
    values: dict[str, Any] = {"api_key": text}
    if text.startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = {}
    url, key, ca_file = values.get("url"), values.get("api_key"), values.get("ca_file")
    is_key = isinstance(key, str) and _VISIBLE.fullmatch(key)
    if not is_key or not isinstance(url, str | None) or not isinstance(ca_file, str | None):
        raise ClientError("bad_key_file", _("{path} holds no API key"), path=str(path))
    made = path.parent / "tls" / "ca.pem"  # by `dpfl up --public-url`, beside its admin.json
    if ca_file is None and made.exists():
        ca_file = str(made)
    return url, str(key), ca_file and str(path.parent / ca_file)
