"""Structured logs: one JSON object a line in production, readable lines in development.

What strangers wrote is escaped in both, so that nobody forges an entry, or hides one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from app.core.settings import Environment

_PROCESSORS: list[structlog.typing.Processor] = []
"""One list for good: loggers keep the one that they first saw, and would miss what is set later."""


def configure_logs(environment: Environment) -> None:
    """Set structlog up for this process; the standard library's records go to standard error as well."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=False)
        if environment is Environment.DEVELOPMENT
        else structlog.processors.JSONRenderer()
    )
    _PROCESSORS[:] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        indent_trace,
        renderer,
    ]
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def indent_trace(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Set a trace off, line by line: what an error quotes then never stands where an entry begins."""
    if trace := entry.get("exception"):
        lines = str(trace).splitlines()
        entry["exception"] = "\n".join(
            "  " + "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line) for line in lines
        )
    return entry
