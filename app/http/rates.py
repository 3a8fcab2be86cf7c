"""How often somebody calls: counted in Valkey for all gateways together, or by this process alone.

Valkey makes limits hold across processes and nothing depends on it: where it does not answer within
milliseconds, this process goes on with a count of its own, says so once in its log and in the gauge
`dpfl_rates_local`, and asks again after some seconds. No request fails for it.

A count is one time, the theoretical arrival time of the generic cell rate algorithm (ITU-T I.371), read and
moved by one script on Valkey's clock. It is gone when the caller has paused for a minute, and is kept under
a keyed hash: who called when cannot be read from it without the master key.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import RedisError
from redis.retry import Retry

log = structlog.get_logger()
ANSWER_S = 0.025
"""An answer that takes longer is not waited for."""
CONNECT_S = 0.25
"""A TLS handshake takes more than an answer does; it is waited for once, and again after each pause."""
PAUSE_S = 5.0
"""So long this process counts alone before one request asks Valkey again."""
_MAX_KEYS = 50_000
_SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local apart, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local expected = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
local next = expected + apart
local wait = next - now - most
if wait > 0 then return math.ceil(wait) end
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000))
return 0
"""
"""Microseconds until the next call is allowed, 0 when this one is. ARGV: the time between two calls at the
allowed rate, and how far calls may be ahead of it."""


class Told(Protocol):
    """Where it is shown whether this process counts alone."""

    def set(self, value: float) -> None:
        """1 while it does."""


class LocalRates:
    """Token buckets of one process. Several gateways allow as many times more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, subject: str, *, per_minute: int) -> float:
        """Take one call: 0 when it is allowed, otherwise the seconds until the next one is."""
        moment, rate = time.monotonic(), per_minute / 60
        with self._lock:
            left, at = self._buckets.pop(subject, (float(per_minute), moment))
            left = min(float(per_minute), left + (moment - at) * rate)
            allowed = left >= 1
            self._buckets[subject] = (left - 1 if allowed else left, moment)
            while len(self._buckets) > _MAX_KEYS:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate


class Rates:
    """Counts of calls, shared where they can be. A minute's worth may come at once."""

    def __init__(self, shared: Redis | None, *, name: Callable[[str], str], told: Told) -> None:
        """Count in `shared`, or alone where that is None.

        `name` makes a key that tells nothing of its subject.
        """
        self._shared, self._name, self._told = shared, name, told
        self._script = None if shared is None else shared.register_script(_SCRIPT)
        self._local = LocalRates()
        self._lock = threading.Lock()
        self._asks_at: float | None = None
        """When Valkey, which did not answer, is asked again; None while it answers."""
        told.set(1.0 if shared is None else 0.0)

    def take(self, subject: str, *, per_minute: int) -> float:
        """Take one call: 0 when it is allowed, otherwise the seconds until the next one is."""
        if self._script is not None and self._may_ask():
            try:
                found = self._ask(self._script, subject, per_minute)
            except RedisError as error:
                self._lost(error)
            else:
                self._answered()
                return found
        return self._local.take(subject, per_minute=per_minute)

    def close(self) -> None:
        """Close the connections."""
        if self._shared is not None:
            self._shared.close()

    def _ask(self, script: Script, subject: str, per_minute: int) -> float:
        apart_us = 60_000_000 / per_minute
        wait_us: int = script(keys=[self._name(subject)], args=[f"{apart_us:.3f}", "60000000"])
        return wait_us / 1e6

    def _may_ask(self) -> bool:
        with self._lock:
            if self._asks_at is None:
                return True
            moment = time.monotonic()
            if moment < self._asks_at:
                return False
            self._asks_at = moment + PAUSE_S  # this request tries; others go on alone meanwhile
            return True

    def _lost(self, error: RedisError) -> None:
        with self._lock:
            was_there, self._asks_at = self._asks_at is None, time.monotonic() + PAUSE_S
        if was_there:
            # Once for an outage, and no count: a number of lines would be a number of requests.
            self._told.set(1.0)
            log.warning("rates_counted_by_this_process_alone", error=type(error).__name__)

    def _answered(self) -> None:
        if self._asks_at is None:
            return
        with self._lock:
            was_lost, self._asks_at = self._asks_at is not None, None
        if was_lost:
            self._told.set(0.0)
            log.info("rates_shared_again")


def connected(url: str) -> Redis | None:
    """Valkey for counting: short waits, no second attempt. Opens nothing yet; None for what it cannot be."""
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":  # Celery's name for it, which the library does not know
        number = parse_qs(parts.query).get("virtual_host", ["0"])[-1]
        url = f"unix://{parts.netloc}{parts.path}?db={number.lstrip('/')}"
    retry = Retry(NoBackoff(), 0)
    try:
        found = Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=CONNECT_S, retry=retry)
        pool = found.connection_pool
        if (checks := pool.connection_kwargs.get("ssl_cert_reqs")) is not None:  # Celery says CERT_REQUIRED
            pool.connection_kwargs["ssl_cert_reqs"] = str(checks).lower().removeprefix("cert_")
        # Made and thrown away: options that this library does not know would fail the first request.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, RedisError):  # what Celery knows and this library does not
        log.warning("rates_cannot_be_shared", scheme=parts.scheme)
        return None
    return found
