"""`dpfl up`: the whole stack on one machine, from an empty folder to an answering gateway."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cli.embedded import plan
from cli.embedded.console import Console
from cli.embedded.credentials import Credentials, load_credentials
from cli.embedded.errors import ServiceFailed
from cli.embedded.folder import DataFolder
from cli.embedded.orphans import RunRecord, stop_orphans
from cli.embedded.processes import LOOPBACK, free_port, require_free_port
from cli.embedded.services import PostgresLauncher, ValkeyLauncher
from cli.embedded.stack import answers
from cli.embedded.supervisor import NAME, Launcher, StopRequested, Supervisor
from cli.embedded.tls import ensure_tls, public_address
from cli.i18n import _

DEFAULT_PORT = 8000
MIGRATION_LIMIT_S = 300.0
BOOTSTRAP_LIMIT_S = 60.0
READY_LIMIT_S = 120
READY_PAUSE_S = 0.1
# To PostgreSQL SIGTERM means: wait for every session to leave by itself.
POLITE_STOP = {PostgresLauncher.name: PostgresLauncher.stop[0]}


@dataclass(frozen=True)
class Choices:
    """What a person may choose on the command line."""

    host: str = LOOPBACK
    port: int = DEFAULT_PORT
    workers: int = 1
    quiet: bool = False
    public_url: str | None = None
    """https://host:port by which other machines call: TLS is then made and spoken."""


def chosen(
    *, host: str | None, port: int | None, workers: int, quiet: bool, public_url: str | None
) -> Choices:
    """Complete what was chosen: a public address is listened for on every interface.

    A public URL without TLS names this machine, or a proxy in front of it, which is left to its operator.

    Raises PublicUrlUnusable.
    """
    if public_url is None or public_url.startswith("http://"):
        chosen_port = DEFAULT_PORT if port is None else port
        return Choices(host=host or LOOPBACK, port=chosen_port, workers=workers, quiet=quiet)
    public_host, public_port = public_address(public_url)
    everywhere = LOOPBACK if public_host in plan.LOOPBACK_HOSTS else "0.0.0.0"  # noqa: S104  # nosec B104
    return Choices(
        host=host or everywhere,
        port=public_port if port is None else port,
        workers=workers,
        quiet=quiet,
        public_url=public_url.rstrip("/"),
    )


def run_stack(folder: DataFolder, choices: Choices) -> None:
    """Run everything in `folder` until SIGINT or SIGTERM, and leave nothing running.

    Raises:
        EmbeddedError: with one line that says why it cannot run, or cannot go on.
    """
    with folder.held():
        console = Console(folder.logs, quiet=choices.quiet)
        stopped = stop_orphans(folder.running, stop=POLITE_STOP)
        if stopped:
            console.say(NAME, _("stopped what a killed run had left: {names}", names=", ".join(stopped)))
        port = choices.port or free_port()
        require_free_port(port, host=choices.host, wanted_by=_("the gateway"))
        record = RunRecord(folder.running)
        supervisor = Supervisor(console, record)
        supervisor.listen_to_signals()
        try:
            addresses = _start_all(folder, supervisor, record, choices=choices, port=port)
            _say_ready(folder, console, addresses)
            supervisor.keep_running()
        except StopRequested:
            pass
        finally:
            console.say(NAME, _("stopping"))
            supervisor.stop()
            record.remove()
        console.say(NAME, _("stopped; the data stay in {folder}", folder=folder.root))


def _start_all(
    folder: DataFolder, supervisor: Supervisor, record: RunRecord, *, choices: Choices, port: int
) -> plan.Addresses:
    credentials = load_credentials(folder.secrets)
    public = choices.public_url
    tls = None if public is None else ensure_tls(folder.tls, public_address(public)[0])
    addresses = plan.Addresses(
        host=choices.host,
        port=port,
        public_url=public,
        database_url=_database(folder, supervisor, credentials),
        redis_url=_broker(folder, supervisor, credentials),
        blob_url=os.environ.get("BLOB_URL") or folder.blobs.as_uri(),
    )
    record.addresses = {
        "gateway": addresses.gateway_url,
        "database": addresses.database_url,
        "redis": addresses.redis_url,
    }
    record.write()
    environment = plan.process_environment(
        os.environ,
        addresses,
        master_key=credentials.master_key,
        data=folder.root,
        admin_file=folder.admin,
    )
    if tls is not None:
        environment |= tls.environment()
    supervisor.run_to_end(plan.migration_command(environment), limit_s=MIGRATION_LIMIT_S)
    supervisor.run_to_end(plan.bootstrap_command(environment), limit_s=BOOTSTRAP_LIMIT_S)
    for command in plan.lasting_commands(environment, workers=choices.workers, cuda=plan.cuda_is_there()):
        supervisor.start(command)
    _await_gateway(supervisor, addresses.gateway_url, None if tls is None else tls.authority)
    return addresses


def _database(folder: DataFolder, supervisor: Supervisor, credentials: Credentials) -> str:
    named = os.environ.get("DATABASE_URL")
    if named:
        return named
    server = PostgresLauncher(folder.postgres, password=credentials.database_password)
    _start_service(supervisor, server)
    return server.url


def _broker(folder: DataFolder, supervisor: Supervisor, credentials: Credentials) -> str:
    named = os.environ.get("REDIS_URL")
    if named:
        return named
    server = ValkeyLauncher(folder.valkey, password=credentials.redis_password)
    _start_service(supervisor, server)
    return server.url


def _start_service(supervisor: Supervisor, launcher: Launcher) -> None:
    began = time.monotonic()
    supervisor.start(launcher)
    seconds = f"{time.monotonic() - began:.2f}"
    log = supervisor.console.log_path(launcher.name)
    supervisor.console.say(
        launcher.name, _("answers after {seconds} s (log: {log})", seconds=seconds, log=log)
    )


def _await_gateway(supervisor: Supervisor, url: str, authority: Path | None) -> None:
    deadline = time.monotonic() + READY_LIMIT_S
    while not answers(url, authority=authority):
        if time.monotonic() > deadline:
            log = supervisor.console.log_path("gateway")
            raise ServiceFailed(
                _("the gateway was not ready within {limit} s; see {log}", limit=READY_LIMIT_S, log=log)
            )
        supervisor.wait(READY_PAUSE_S)


def _say_ready(folder: DataFolder, console: Console, addresses: plan.Addresses) -> None:
    url = addresses.public_url or addresses.gateway_url
    console.say(NAME, _("ready: {url}", url=url))
    console.say(NAME, _("try it in Swagger UI: {url}", url=f"{url}/docs"))
    if addresses.public_url is not None:
        console.say(NAME, _("other machines trust {path}", path=folder.tls / "ca.pem"))
    if folder.admin.exists():
        console.say(NAME, _("the administrator's credentials are in {path}", path=folder.admin))
    console.say(NAME, _("data and logs are in {folder}; Ctrl-C stops", folder=folder.root))
