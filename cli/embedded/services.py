"""The two servers as the supervisor sees them: a server that ends comes back on the port it had."""

import signal
import subprocess
from pathlib import Path

from cli.embedded.console import Console
from cli.embedded.postgres import Postgres
from cli.embedded.processes import OnSpawn
from cli.embedded.valkey import Valkey


class PostgresLauncher:
    """Starts PostgreSQL; its address stays the same for as long as this object lives."""

    name = "postgres"
    stop = (signal.SIGINT, signal.SIGQUIT)
    patience_s = 10.0

    def __init__(self, folder: Path, *, password: str) -> None:
        self._folder = folder
        self._password = password
        self._port: int | None = None
        self.url = ""

    def launch(self, console: Console, on_spawn: OnSpawn) -> "subprocess.Popen[bytes]":
        """Start the server and wait until it answers."""
        log = console.log_path(self.name)
        server = Postgres.start(
            self._folder, password=self._password, port=self._port, log=log, on_spawn=on_spawn
        )
        self._port, self.url = server.port, server.url
        return server.process


class ValkeyLauncher:
    """Starts Valkey; its address stays the same for as long as this object lives."""

    name = "valkey"
    stop = (signal.SIGTERM,)
    patience_s = 10.0

    def __init__(self, folder: Path, *, password: str) -> None:
        self._folder = folder
        self._password = password
        self._port: int | None = None
        self.url = ""

    def launch(self, console: Console, on_spawn: OnSpawn) -> "subprocess.Popen[bytes]":
        """Start the server and wait until it answers."""
        log = console.log_path(self.name)
        server = Valkey.start(
            self._folder, password=self._password, port=self._port, log=log, on_spawn=on_spawn
        )
        self._port, self.url = server.port, server.url
        return server.process
