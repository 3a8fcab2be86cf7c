"""Becoming a client: a key of one's own, proof that it is held, and the data holder's terms kept first."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.dataset import check_data
from client.durable import private_folder, write_whole
from client.errors import ClientError
from client.i18n import _
from client.ledger import Ledger
from client.policy import Policy
from client.profile import (
    Config,
    Profile,
    default_home,
    file_sha256,
    lock_folder,
    make_key,
    policy_path,
    raw_public_key,
)
from client.session import Session, problem_of, server_address
from client.trust import Trust
from client.wire import Enrolled, parse

PROOF_PREFIX = b"dpfl-enrol-v1\0"
_SOFTWARE = ("torch", "transformers", "peft", "dp-accounting")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a data holder asks for at enrolment."""

    folder: Path
    server: str
    token: str
    name: str
    data: Path | None
    """None: they are on another machine, which trains (client.pairing)."""
    policy: Policy
    home: Path | None = None
    """Where the data sets' ledgers are; this account's own place without it."""
    ca_file: Path | None = None
    """Certificates to trust instead of the usual; besides `ca_pem` where there is an invitation's."""
    ca_pem: str | None = None
    """The server's own authority, from an invitation."""
    pins: tuple[str, ...] = ()
    proxy: str | None = None
    allow_http: bool = False
    memory_bytes: int | None = None
    """What training may use; all that the machine has without it."""
    upload_bytes_per_s: float | None = None
    """How fast it sends; None is not said, and limits nothing."""


def enrol(wish: Wish) -> Profile:
    """Enrol with a server. Asked again with the same folder and token, it ends in the same client."""
    server = server_address(wish.server, allow_http=wish.allow_http)
    private_folder(wish.folder)
    with lock_folder(wish.folder):
        if (wish.folder / "config.json").exists():
            raise ClientError(
                "already_enrolled", _("{path} is an enrolled client already"), path=str(wish.folder)
            )
        home = (wish.home or default_home()).expanduser().resolve()
        dataset = wish.policy.dataset
        data, data_sha256 = _checked_data(wish)
        Ledger(home, dataset).enrol_data(data_sha256)
        keep_policy(home, wish.policy)
        key = make_key(wish.folder)
        trust = _trust(wish)
        with Session(server, trust=trust, proxy=wish.proxy, patience_s=30.0) as session:
            enrolled = _ask(session, wish, key)
        config = Config(
            server=server,
            client_id=str(enrolled.client_id),
            name=wish.name,
            region=enrolled.region,
            dataset=dataset,
            data=data,
            data_sha256=data_sha256,
            home=str(home),
            ca_file=trust.ca_file,
            extra_ca_file=trust.extra_ca_file,
            pins=list(trust.pins),
            proxy=wish.proxy,
            allow_http=wish.allow_http,
        )
        return Profile.create(wish.folder, config)


def _trust(wish: Wish) -> Trust:
    """Whom to take for the server; an invitation's authority is kept in the client's folder."""
    given = None if wish.ca_file is None else str(wish.ca_file.expanduser().resolve())
    if wish.ca_pem is not None:
        kept = wish.folder.resolve() / "server-ca.pem"
        write_whole(kept, wish.ca_pem.encode())
        return Trust(str(kept), given, wish.pins)
    if wish.pins:  # an invitation to a server that a public authority certifies
        return Trust(None, given, wish.pins)
    return Trust(given)


def _checked_data(wish: Wish) -> tuple[str, str]:
    """Return the data file's path and digest, if it holds what the policy declares.

    Where the data are on another machine, the path is empty and the digest names the data set: by it the
    ledger is known again that was begun here.
    """
    if wish.data is None:
        return "", hashlib.sha256(f"elsewhere:{wish.policy.dataset}".encode()).hexdigest()
    data = wish.data.expanduser().resolve()
    data_sha256 = file_sha256(data)
    check_data(data, wish.policy)
    return str(data), data_sha256


def keep_policy(home: Path, policy: Policy) -> None:
    """Write a data set's policy when it has none; an existing one is the holder's and must agree."""
    path = policy_path(home, policy.dataset)
    private_folder(path.parent)
    if not path.exists():
        policy.save(path)
    elif Policy.load(path) != policy:
        raise ClientError(
            "policy_exists",
            _("the data set {name} has other terms in {path}: edit them there, or enrol with the same"),
            name=policy.dataset,
            path=str(path),
        )


def capability(*, memory_bytes: int | None = None, upload_bytes_per_s: float | None = None) -> dict[str, Any]:
    """What this machine is, or what of it may be used: nothing about the data set."""
    software: dict[str, str] = {}
    for name in _SOFTWARE:
        try:
            software[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    said = {} if upload_bytes_per_s is None else {"upload_bytes_per_s": upload_bytes_per_s}
    return said | {
        "memory_bytes": memory_bytes or psutil.virtual_memory().total,
        "cpu_count": os.cpu_count() or 1,
        "software": software,
    }


def _ask(session: Session, wish: Wish, key: Ed25519PrivateKey) -> Enrolled:
    raw = raw_public_key(key)
    proof = key.sign(PROOF_PREFIX + wish.token.encode() + b"\0" + raw)
    reply = session.public(
        "POST",
        "/v1/clients",
        payload={
            "enrolment_token": wish.token,
            "name": wish.name,
            "public_key": _base64url(raw),
            "proof": _base64url(proof),
            "population": wish.policy.dataset,
            "capability": capability(
                memory_bytes=wish.memory_bytes, upload_bytes_per_s=wish.upload_bytes_per_s
            ),
        },
    )
    if reply.status // 100 != 2:
        raise problem_of(reply)
    return parse(Enrolled, reply.json("enrolment"), what="enrolment")


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
