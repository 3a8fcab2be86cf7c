"""How this program uses Celery: as a bell that says which job to look at, and nothing more."""

from __future__ import annotations

from celery import Celery

SOCKET_TIMEOUT_S = 2.0
PROCESS_START_S = 120.0
"""Importing torch takes seconds; Celery's own limit of 4 s would respawn a slow process for ever."""


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
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options=sockets,
    )
    return celery
