"""The real PostgreSQL and Valkey that a test run uses: one of each, started once, shared by all workers."""

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from cli.embedded.postgres import Postgres
from cli.embedded.valkey import Valkey

DATABASE_VARIABLE = "DPFL_TEST_DATABASE_URL"
REDIS_VARIABLE = "DPFL_TEST_REDIS_URL"


class TestServices:
    """Both servers in a temporary folder, without durability; gone with everything in it at `stop`."""

    __test__ = False  # not a test class, whatever its name begins with

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dpfl-tests-"))
        self.postgres: Postgres | None = None
        self.valkey: Valkey | None = None

    def start(self) -> None:
        """Start both and export their addresses, which pytest-xdist's workers inherit."""
        try:
            self.postgres = Postgres.start(
                self.folder / "postgres", password=secrets.token_urlsafe(24), durable=False
            )
            self.valkey = Valkey.start(
                self.folder / "valkey", password=secrets.token_urlsafe(24), durable=False
            )
        except BaseException:
            self.stop()
            raise
        os.environ[DATABASE_VARIABLE] = self.postgres.url
        os.environ[REDIS_VARIABLE] = self.valkey.url

    def stop(self) -> None:
        """Stop both and remove their files."""
        for server in (self.valkey, self.postgres):
            if server is not None:
                server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
