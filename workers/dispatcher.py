"""`python -m workers.dispatcher`: wakes on NOTIFY and on a tick, and sends what is due to Celery.

It holds no state that matters: any number may run, and one may die at any point.
"""

from __future__ import annotations

import os
import select
import signal
import socket

import psycopg
import sqlalchemy as sa
import structlog
from celery import Celery
from sqlalchemy.engine import make_url

from app.audit import sequencer
from app.core.crypto import SealBroken, Vault
from app.core.db import NOTICE_LOSS, Database
from app.core.logs import configure_logs
from app.core.settings import Settings
from app.jobs.queue import CHANNEL
from workers.broker import build_celery
from workers.clock import Clock
from workers.relay import BATCH, Relay

LONGEST_PAUSE_S = 2.0
log = structlog.get_logger()


class StopSwitch:
    """Turned by SIGTERM or SIGINT; its socket ends a `select` at once."""

    def __init__(self) -> None:
        self.on = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def install(self) -> None:
        """Take the two signals."""
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._turn)

    def close(self) -> None:
        """Close the sockets."""
        self._reader.close()
        self._writer.close()

    def turn(self) -> None:
        """Turn it from another thread."""
        self.on = True
        self._writer.send(b"\0")

    def _turn(self, _number: int, _frame: object) -> None:
        self.on = True

    def wait(self, seconds: float, *, also: int | None = None) -> None:
        """Wait for the signal, for `also` (a descriptor) to have data, or for the time to pass."""
        watched = [self._reader.fileno(), *([also] if also is not None else [])]
        select.select(watched, [], [], seconds)


class Dispatcher:
    """The loop: listen, ask for what time brings, send what is due, put the audit log in order."""

    def __init__(self, settings: Settings, celery: Celery, stop: StopSwitch) -> None:
        url = settings.database_url.get_secret_value()
        plain = make_url(url).set(drivername="postgresql")
        self._dsn = plain.render_as_string(hide_password=False)
        self._database = Database(url, pool_size=1)
        self._relay = Relay(celery, resend_s=settings.resend_s, gpu_workers=settings.gpu_workers)
        self._clock = Clock()
        self._tick_s = settings.tick_s
        self._vault = Vault(settings.master_key_bytes)
        self._public_url = settings.public_url
        self._stop = stop

    def run(self) -> None:
        """Work until the stop switch is turned; a lost database is waited for."""
        pause_s, lost = 0.05, False
        while not self._stop.on:
            try:
                with psycopg.connect(self._dsn, autocommit=True, **NOTICE_LOSS) as listener:
                    listener.execute(f"LISTEN {CHANNEL}")
                    log.info("dispatcher_listens")
                    pause_s, lost = 0.05, False
                    self._work(listener)
            except (psycopg.OperationalError, psycopg.InterfaceError, sa.exc.DBAPIError) as error:
                if not lost:
                    log.error("database_unreachable", error=type(error).__name__)
                lost = True
                self._stop.wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        self._database.dispose()
        log.info("dispatcher_stopped")

    def _work(self, listener: psycopg.Connection[tuple[object, ...]]) -> None:
        while not self._stop.on:
            with self._database.run_tx("dispatch") as session:
                self._clock.ask(session)
                sent = self._relay.send_due(session)
            if self._sequence() == sequencer.BATCH or sent == BATCH:
                continue
            # What was notified during the transaction is in the socket by now or will be: nothing is missed.
            self._stop.wait(self._tick_s, also=listener.fileno())
            for _message in listener.notifies(timeout=0):
                pass

    def _sequence(self) -> int:
        """Jobs go on whatever is wrong with the audit log; it goes on where it stopped."""
        try:
            with self._database.run_tx("sequence audit log") as session:
                return sequencer.sequence(session, self._vault, public_url=self._public_url)
        except (sequencer.TreeBroken, SealBroken, KeyError) as error:
            log.error("audit_log_not_sequenced", error=type(error).__name__, reason=str(error))
            return 0


def main() -> None:
    """Run until a signal."""
    settings = Settings.load()
    if settings.redis_url is None:
        raise SystemExit("REDIS_URL is not set")
    configure_logs(settings.environment)
    stop = StopSwitch()
    stop.install()
    log.info("dispatcher_starts", pid=os.getpid())
    Dispatcher(settings, build_celery(settings.redis_url.get_secret_value()), stop).run()


if __name__ == "__main__":
    main()
