"""`python -m app` serves; `bootstrap` makes the first administrator; `openapi` and `evidence` print.

`rotate-signing-key`, `rotate-audit-key` and `erase-audit` are the operator's acts on keys and the audit log.
`rewrap`, `reroot` and `shred ORGANISATION` are the operator's acts on the keys of stored bytes.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID

import uvicorn
from pydantic import SecretStr, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.audit import keys
from app.audit.record import erase
from app.core.crypto import SealBroken, Vault
from app.core.db import Database
from app.core.errors import DomainError
from app.core.settings import Settings
from app.custody.blobs import Blobs
from app.custody.commands import reroot, rewrap, shred
from app.http import tls
from app.http.heads import BoundedHeads
from app.identity.bootstrap import bootstrap
from app.identity.keys import rotate_signing_keys
from app.main import build_app
from app.rounds import sealed_evidence
from app.updates.adopting import adopt

USAGE = (
    "usage: python -m app [bootstrap | openapi | evidence ROUND | rotate-signing-key [--leaked] | "
    "rotate-audit-key | erase-audit SUBJECT | rewrap | reroot | shred ORGANISATION]"
)
OPERATOR = "operator"
GRACE_S = 5
MAX_CONNECTIONS = 2000


def serve() -> None:
    """Run the gateway until it is told to stop."""
    settings = Settings.load()
    trusted_proxies = os.environ.get("FORWARDED_ALLOW_IPS") or None
    host = os.environ.get("DPFL_HOST", "127.0.0.1")
    tls.require_private(settings, host=host)
    uvicorn.run(
        build_app(settings),
        host=host,
        port=int(os.environ.get("DPFL_PORT", "8000")),
        # httptools refuses a request with both Content-Length and Transfer-Encoding; h11 guesses.
        http=BoundedHeads,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=trusted_proxies is not None,
        forwarded_allow_ips=trusted_proxies,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=MAX_CONNECTIONS,
        ssl_context_factory=tls.context_factory(settings),
    )


def make_first_administrator() -> None:
    """Bootstrap the database and seal an earlier release's files; says where the key is, not what it is."""
    name = os.environ.get("DPFL_ADMIN_FILE")
    if not name:
        sys.exit("DPFL_ADMIN_FILE is not set: name the file that is to hold the administrator's API key")
    settings = Settings.load()
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        is_new = bootstrap(settings, database, Vault(settings.master_key_bytes), admin_file=Path(name))
        adopted, left = adopt(database, Blobs.of_process(settings, database))
    except (OSError, DomainError, SQLAlchemyError) as error:
        reason = next(iter(str(error).splitlines()), "")
        sys.exit(f"bootstrap failed: {type(error).__name__}: {reason}")
    finally:
        database.dispose()
    if adopted or left:
        sys.stdout.write(
            f"{adopted} plain files of an earlier release were sealed; {left} belong to nobody\n"
        )
    sys.stdout.write(f"administrator's API key {'written to' if is_new else 'is in'} {name}\n")


def rotate_signing_key(*, leaked: bool) -> None:
    """Let the next signing key sign: for a host without an administrator's credentials at hand."""
    settings = Settings.load()
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        with database.run_tx("rotate_signing_key") as session:
            rotate_signing_keys(session, Vault(settings.master_key_bytes), leaked=leaked)
    except (DomainError, SQLAlchemyError) as error:
        reason = next(iter(str(error).splitlines()), "")
        sys.exit(f"not rotated: {type(error).__name__}: {reason}")
    finally:
        database.dispose()
    sys.stdout.write("the next signing key signs from now on\n")


def print_openapi() -> None:
    """Print the API's description; needs no configuration and opens nothing."""
    settings = Settings(
        database_url=SecretStr("postgresql+psycopg://localhost/none"),
        blob_url="file:///nonexistent",
        master_key=SecretStr(base64.b64encode(os.urandom(32)).decode()),
    )
    sys.stdout.write(json.dumps(build_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n")


def print_evidence(round_id: str) -> None:
    """Print what a `central` round saw of single updates: for whoever holds the master key."""
    settings = Settings.load()
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        with database.run_tx("evidence") as session:
            found = sealed_evidence.unsealed(session, Vault(settings.master_key_bytes), UUID(round_id))
    except (ValueError, DomainError, SealBroken, SQLAlchemyError) as error:
        reason = next(iter(str(error).splitlines()), "")
        sys.exit(f"no evidence: {type(error).__name__}: {reason}")
    finally:
        database.dispose()
    for client_id, norm in found:
        line = {"client_id": str(client_id), "finite": norm is not None, "norm": norm}
        sys.stdout.write(json.dumps(line) + "\n")


def on_audit_log(act: Callable[[Session, Vault], str]) -> None:
    """Do one of the operator's acts on the audit log, and say what was done."""
    settings = Settings.load()
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        with database.run_tx("audit log") as session:
            told = act(session, Vault(settings.master_key_bytes))
    except (ValueError, SQLAlchemyError) as error:
        reason = next(iter(str(error).splitlines()), "")
        sys.exit(f"nothing was done: {type(error).__name__}: {reason}")
    finally:
        database.dispose()
    sys.stdout.write(told + "\n")


def rotate_audit_key(session: Session, vault: Vault) -> str:
    """Let a new key sign the log's checkpoints, beside the former one for a while."""
    new = keys.rotate(session, vault, actor=OPERATOR)
    return "there is no key yet" if new is None else f"the new key: {keys.public(new).raw.hex()}"


def erase_audit(about: str, session: Session, _vault: Vault) -> str:
    """Delete the names and texts that entries on or by `about` committed to."""
    return f"{erase(session, about=about, actor=OPERATOR)} values erased; the log stays valid"


def on_keys(act: Callable[[Settings, Database], str]) -> None:
    """Do an operator's act on keys, and say what was done."""
    settings = Settings.load()
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        done = act(settings, database)
    except (ValueError, DomainError, SQLAlchemyError) as error:
        reason = next(iter(str(error).splitlines()), "")
        sys.exit(f"nothing was done, or not all of it: {type(error).__name__}: {reason}")
    finally:
        database.dispose()
    sys.stdout.write(f"{done}\n")


def main() -> None:
    """Choose by the first argument."""
    verbs: dict[tuple[str, ...], Callable[[], None]] = {
        (): serve,
        ("bootstrap",): make_first_administrator,
        ("openapi",): print_openapi,
        ("rotate-signing-key",): partial(rotate_signing_key, leaked=False),
        ("rotate-signing-key", "--leaked"): partial(rotate_signing_key, leaked=True),
        ("rotate-audit-key",): partial(on_audit_log, rotate_audit_key),
    }
    verbs |= {(name,): partial(on_keys, act) for name, act in (("rewrap", rewrap), ("reroot", reroot))}
    words = tuple(sys.argv[1:])
    if len(words) == 2 and words[0] == "shred":
        verbs[words] = partial(on_keys, partial(shred, named=words[1]))
    if len(words) == 2 and words[0] == "evidence":
        verbs[words] = partial(print_evidence, words[1])
    if len(words) == 2 and words[0] == "erase-audit":
        verbs[words] = partial(on_audit_log, partial(erase_audit, words[1]))
    chosen = verbs.get(words)
    if chosen is None:
        sys.exit(USAGE)
    try:
        chosen()
    except ValidationError as error:
        names = ", ".join(str(fault["loc"][0]) if fault["loc"] else fault["msg"] for fault in error.errors())
        sys.exit(f"the configuration is incomplete or wrong: {names}")


if __name__ == "__main__":
    main()
