"""How this program uses Celery: as a bell that says which job to look at, and nothing more."""

from __future__ import annotations

import ssl
from typing import Any

from celery import Celery
from kombu.transport import redis
from kombu.transport.virtual import QoS

SOCKET_TIMEOUT_S = 2.0
PROCESS_START_S = 120.0
"""Importing torch takes seconds; Celery's own limit of 4 s would respawn a slow process for ever."""


class HintQoS(redis.QoS):
    """Counts the hints in hand in this process's memory, and keeps no copy of them in the broker.

    The outbox sends a lost hint again, so a second book of what is unfinished is of no use. It does harm:
    the stock class, when the broker goes away in the middle of an acknowledgement, counts that message as
    in hand for ever, and a worker that takes one at a time then waits for ever.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a hint."""
        QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Forget a hint."""
        QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's own
        """Forget a hint; whoever wants it again finds it in the outbox."""
        QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Forget all hints, at the end of the process or of the connection."""
        if self._delivered is not None:
            self._delivered.clear()

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Nothing is invisible."""


class HintChannel(redis.Channel):
    """kombu's channel with the QoS above."""

    QoS = HintQoS


class HintTransport(redis.Transport):
    """kombu's transport with the channel above."""

    Channel = HintChannel


def build_celery(redis_url: str) -> Celery:
    """Make the Celery application: JSON messages that hold ids, early acknowledgement, no results."""
    celery = Celery("dpfl", broker=redis_url)
    sockets = {
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
        "socket_keepalive": True,
    }
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue="cpu",
        task_create_missing_queues=True,
        worker_pool="prefork",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_proc_alive_timeout=PROCESS_START_S,
        worker_cancel_long_running_tasks_on_connection_loss=True,  # concerns late acknowledgement: not ours
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport="workers.broker:HintTransport",
        broker_transport_options=sockets,
    )
    if redis_url.startswith("rediss:"):
        celery.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}  # kombu's default checks nothing
    return celery
